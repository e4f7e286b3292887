//! Sessions: requests that enter and leave a running batch.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, GenerationRequest, GenerationSession, Policy, RequestId, SamplingParams,
    SessionLimits, SessionRequest, SessionToken, StopCheck,
};

use super::{inference, policy, prompt, prompts, sampling};

const LIMITS: SessionLimits = SessionLimits {
    max_concurrent: 4,
    max_tokens: 80,
};

fn request(stream: usize, sample: u32) -> GenerationRequest {
    let prompts = prompts();
    GenerationRequest {
        prompt: Arc::clone(&prompts[stream % prompts.len()]),
        prompt_stream: stream as u64,
        sample,
    }
}

fn asked(request: GenerationRequest, params: &SamplingParams) -> SessionRequest {
    SessionRequest {
        request,
        params: Arc::new(params.clone()),
        top_logprobs: 0,
    }
}

fn take(done: &mut BTreeMap<RequestId, Completion>, tokens: Vec<SessionToken>) {
    for token in tokens {
        let completion = done.entry(token.id).or_default();
        completion.token_ids.push(token.token);
        completion.logprobs.push(token.logprob);
        completion.truncated_logprobs.push(token.truncated_logprob);
        completion.entropies.push(token.entropy);
        completion.finish_reason = token.finish.unwrap_or_default();
    }
}

fn finish(session: &mut dyn GenerationSession) -> BTreeMap<RequestId, Completion> {
    let mut done = BTreeMap::new();
    while session.pending() > 0 {
        take(&mut done, session.step().unwrap());
    }
    assert!(session.step().unwrap().is_empty());
    done
}

fn alone(request: &GenerationRequest, params: &SamplingParams) -> Completion {
    let mut policy = policy("grouped_tied", &inference());
    let request = std::slice::from_ref(request);
    let mut done = policy
        .generate(request, params, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    done.remove(0)
}

/// Parameters that differ from row to row.
fn mixed(index: usize) -> SamplingParams {
    let mut params = sampling(1);
    params.seed = index as u64;
    params.max_new_tokens = 3 + index % 11;
    match index % 5 {
        0 => params.temperature = 0.0,
        1 => params.top_k = 5,
        2 => {
            params.top_p = 0.8;
            params.repetition_penalty = 1.3;
            params.frequency_penalty = 0.2;
        }
        3 => {
            params.min_p = 0.05;
            params.min_new_tokens = 3;
        }
        _ => params.allowed_token_ids = vec![2, 20, 30, 40, 50],
    }
    params
}

#[test]
fn thirty_requests_through_four_slots_are_as_if_each_were_alone() {
    let mut policy = policy("grouped_tied", &inference());
    let mut session = policy.session(LIMITS).unwrap();
    let mut ids = Vec::new();
    let mut done = BTreeMap::new();
    for index in 0..30 {
        let request = asked(request(index / 2, index as u32 % 2), &mixed(index));
        ids.push(session.submit(request).unwrap());
        if index > 20 {
            // The later ones come while others are being decoded.
            let tokens = session.step().unwrap();
            let mut rows: Vec<RequestId> = tokens.iter().map(|token| token.id).collect();
            rows.dedup();
            assert!(!rows.is_empty());
            take(&mut done, tokens);
        }
    }
    while session.pending() > 0 {
        take(&mut done, session.step().unwrap());
    }
    assert_eq!(done.len(), 30);
    for (index, id) in ids.iter().enumerate() {
        let expected = alone(&request(index / 2, index as u32 % 2), &mixed(index));
        let found = &done[id];
        assert_eq!(found.token_ids, expected.token_ids, "request {index}");
        assert_eq!(found.finish_reason, expected.finish_reason);
        let pairs = [
            (&found.logprobs, &expected.logprobs),
            (&found.truncated_logprobs, &expected.truncated_logprobs),
            (&found.entropies, &expected.entropies),
        ];
        for (found, expected) in pairs
            .map(|(found, expected)| found.iter().zip(expected))
            .into_iter()
            .flatten()
        {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }
}

#[test]
fn a_cancelled_request_leaves_and_the_others_stay_as_they_are() {
    let mut policy = policy("grouped_tied", &inference());
    let mut params = sampling(1);
    params.stop_token_ids.clear();
    let mut session = policy.session(LIMITS).unwrap();
    let ids: Vec<RequestId> = (0..6)
        .map(|stream| session.submit(asked(request(stream, 0), &params)).unwrap())
        .collect();
    let mut done = BTreeMap::new();
    for _ in 0..3 {
        take(&mut done, session.step().unwrap());
    }
    assert_eq!(session.pending(), 6);
    // One that is decoded, one that waits, one that is unknown.
    for id in [ids[1], ids[5], 999] {
        session.cancel(id);
    }
    assert_eq!(session.pending(), 4);
    let before = done[&ids[1]].token_ids.len();
    while session.pending() > 0 {
        take(&mut done, session.step().unwrap());
    }
    assert_eq!(done[&ids[1]].token_ids.len(), before);
    assert!(!done.contains_key(&ids[5]));
    for stream in [0, 2, 3, 4] {
        let expected = alone(&request(stream, 0), &params);
        assert_eq!(done[&ids[stream]].token_ids, expected.token_ids);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_limit() {
    let mut policy = policy("grouped_tied", &inference());
    let mut open = |max_concurrent, max_tokens| {
        let limits = SessionLimits {
            max_concurrent,
            max_tokens,
        };
        policy.session(limits).err().unwrap().to_string()
    };
    assert!(open(4, 257).contains("256 positions"));
    assert!(open(0, 20).contains("no room"));
    assert!(open(1 << 40, 256).contains("no memory"));
    let mut session = policy.session(LIMITS).unwrap();
    let long = GenerationRequest {
        prompt: prompt(1, 70, None),
        prompt_stream: 0,
        sample: 0,
    };
    let refused = session.submit(asked(long, &sampling(1)));
    assert!(matches!(&refused, Err(ModelError::Input(message)) if message.contains("80 tokens")));
    let mut wrong = sampling(1);
    wrong.top_p = 2.0;
    assert!(session.submit(asked(request(0, 0), &wrong)).is_err());
    // The session goes on.
    session.submit(asked(request(0, 0), &sampling(1))).unwrap();
    assert_eq!(finish(&mut *session).len(), 1);
}

#[test]
fn a_completion_ends_where_the_check_says_and_reports_likely_tokens() {
    let mut policy = policy("grouped_tied", &inference());
    let mut params = sampling(1);
    params.stop_token_ids.clear();
    let whole = alone(&request(0, 0), &params);
    let end = whole.token_ids[4];
    params.stop_check = Some(StopCheck(Arc::new(move |tokens: &[u32]| {
        tokens.last() == Some(&end)
    })));
    let stopped = alone(&request(0, 0), &params);
    let length = 1 + whole
        .token_ids
        .iter()
        .position(|token| *token == end)
        .unwrap();
    assert_eq!(stopped.token_ids, whole.token_ids[..length]);
    assert_eq!(stopped.finish_reason.as_str(), "stop");

    let mut session = policy.session(LIMITS).unwrap();
    params.temperature = 0.0;
    session
        .submit(SessionRequest {
            top_logprobs: 5,
            ..asked(request(1, 0), &params)
        })
        .unwrap();
    for token in session.step().unwrap() {
        assert_eq!(token.top.len(), 5);
        assert_eq!(token.top[0], (token.token, token.logprob));
        assert!(token.top.is_sorted_by(|left, right| left.1 >= right.1));
    }
}
