//! A batch that requests enter and leave at any time, on the CPU or step by step on any device.

use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    GenerationSession, RequestId, SessionLimits, SessionRequest, SessionToken,
};

use crate::decoder::{Decoder, Room};
use crate::guard::guarded;
use crate::model::Model;
use crate::team::Team;
use crate::{memory, sampling};

/// A session over one model.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    decoder: Decoder<'a>,
    team: Arc<Team>,
    vocab: i64,
    next: RequestId,
}

impl<'a> Session<'a> {
    /// Plans the cache.
    ///
    /// # Errors
    /// [`ModelError::Input`] when the limits do not fit the model or the free memory.
    pub(crate) fn open(
        model: &'a Model,
        threads: usize,
        limits: SessionLimits,
    ) -> Result<Self, ModelError> {
        let SessionLimits {
            max_concurrent,
            max_tokens,
        } = limits;
        let text = &model.config.text;
        if max_concurrent == 0 || max_tokens < 2 {
            return Err(ModelError::Input(format!(
                "a session of {max_concurrent} sequences of {max_tokens} tokens has no room for a prompt and an answer"
            )));
        }
        if max_tokens > text.max_positions {
            return Err(ModelError::Input(format!(
                "sequences of {max_tokens} tokens do not fit the {} positions of the model",
                text.max_positions
            )));
        }
        let room = Room {
            slots: max_concurrent,
            tokens: max_tokens,
            // Nobody waits for a place that is free.
            refill: 1,
        };
        let fits = memory::sequences_that_fit(model, room)?;
        if fits < max_concurrent {
            return Err(ModelError::Input(format!(
                "there is no memory for the key-value cache of {max_concurrent} sequences of {max_tokens} tokens, only for {fits}"
            )));
        }
        Ok(Self {
            decoder: tch::no_grad(|| Decoder::new(model, None, room)),
            vocab: text.vocab,
            team: Team::new(if model.device.is_cuda() { 1 } else { threads }),
            next: 0,
        })
    }
}

impl GenerationSession for Session<'_> {
    fn submit(&mut self, request: SessionRequest) -> Result<RequestId, ModelError> {
        let id = self.next;
        let SessionRequest {
            request,
            params,
            top_logprobs,
        } = request;
        sampling::check(&params, self.vocab)?;
        guarded(|| self.decoder.submit(id, request, params, top_logprobs))?;
        self.next += 1;
        Ok(id)
    }

    fn cancel(&mut self, id: RequestId) {
        let cancel = || {
            self.decoder.cancel(id);
            Ok(())
        };
        // Rows that cannot be moved fail the next step.
        drop(guarded(|| tch::no_grad(cancel)));
    }

    fn step(&mut self) -> Result<Vec<SessionToken>, ModelError> {
        let mut tokens = Vec::new();
        let step = || tch::no_grad(|| self.decoder.step(&mut tokens));
        guarded(|| self.team.enter(step))?;
        Ok(tokens)
    }

    fn pending(&self) -> usize {
        self.decoder.pending()
    }
}
