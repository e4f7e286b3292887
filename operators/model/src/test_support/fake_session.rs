//! A batch over the fixed completions of the fake policy.

use std::collections::VecDeque;

use engine_core::policy::{
    Completion, GenerationSession, RequestId, SessionLimits, SessionRequest, SessionToken,
};
use engine_core::{ModelError, Policy};

use super::fake_policy::FakePolicy;

/// Gives a token of each sequence in the batch at every step.
pub(super) struct FakeSession<'a> {
    policy: &'a mut FakePolicy,
    limits: SessionLimits,
    next: RequestId,
    /// In the order of their arrival; the first `max_concurrent` are the batch.
    queue: VecDeque<Row>,
}

struct Row {
    id: RequestId,
    completion: Completion,
    given: usize,
    top: usize,
}

impl<'a> FakeSession<'a> {
    pub(super) fn new(policy: &'a mut FakePolicy, limits: SessionLimits) -> Self {
        Self {
            policy,
            limits,
            next: 0,
            queue: VecDeque::new(),
        }
    }
}

impl Row {
    fn token(&mut self) -> SessionToken {
        let place = self.given;
        self.given += 1;
        let (token, logprob) = (
            self.completion.token_ids[place],
            self.completion.logprobs[place],
        );
        SessionToken {
            id: self.id,
            token,
            logprob,
            truncated_logprob: self.completion.truncated_logprobs[place],
            entropy: self.completion.entropies[place],
            top: vec![(token, logprob); self.top.min(1)],
            finish: self.is_done().then_some(self.completion.finish_reason),
        }
    }

    fn is_done(&self) -> bool {
        self.given == self.completion.token_ids.len()
    }
}

impl GenerationSession for FakeSession<'_> {
    fn submit(&mut self, request: SessionRequest) -> Result<RequestId, ModelError> {
        let room = request.params.max_new_tokens;
        let prompt = &request.request.prompt;
        self.policy.check_prompt(prompt, room)?;
        if prompt.token_ids.len() + room > self.limits.max_tokens {
            return Err(ModelError::Input(format!(
                "it does not fit {} tokens",
                self.limits.max_tokens
            )));
        }
        self.next += 1;
        self.queue.push_back(Row {
            id: self.next,
            completion: self.policy.complete(&request.request, &request.params),
            given: 0,
            top: request.top_logprobs,
        });
        Ok(self.next)
    }

    fn cancel(&mut self, id: RequestId) {
        self.queue.retain(|row| row.id != id);
    }

    fn step(&mut self) -> Result<Vec<SessionToken>, ModelError> {
        let batch = self.queue.iter_mut().take(self.limits.max_concurrent);
        let tokens = batch.map(Row::token).collect();
        self.queue.retain(|row| !row.is_done());
        Ok(tokens)
    }

    fn pending(&self) -> usize {
        self.queue.len()
    }
}
