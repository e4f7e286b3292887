//! The votes of a judge, and what they say together.

use engine_core::seed;
use operators_verdict::Outcome;

use super::rubric::{REMINDER, read};
use super::{Conversation, JudgeOptions};
use crate::verifier::Opinion;

/// Characters of a judge's words that are kept as the reason.
const KEPT: usize = 2000;
/// Characters of a reply without a verdict that a reason shows.
const SHOWN: usize = 200;

/// The votes on different answers, those on one after the other.
#[derive(Debug)]
pub(super) struct Votes {
    each: u32,
    seed: u64,
    votes: Vec<Vote>,
}

#[derive(Debug)]
struct Vote {
    turns: Vec<(&'static str, String)>,
    stream: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing yet.
    Open,
    /// The last reply had no verdict.
    Unclear,
    Said {
        is_correct: bool,
        why: String,
    },
    Silent(Silence),
}

/// Why a judge does not reply.
#[derive(Debug)]
pub(super) enum Silence {
    /// It would not the next time: the question does not fit the model.
    ForGood(String),
    /// A server failed, or refuses what another setting of it may take: it is worth asking again.
    ForNow(String),
}

impl Silence {
    fn message(&self) -> &str {
        match self {
            Self::ForGood(message) | Self::ForNow(message) => message,
        }
    }
}

impl Votes {
    pub(super) fn new(options: &JudgeOptions) -> Self {
        Self {
            each: options.votes,
            seed: options.seed,
            votes: Vec::new(),
        }
    }

    /// Adds an answer to judge: what the judge is told about it.
    pub(super) fn add(&mut self, text: String) {
        let stream = seed::derive(self.seed, &text);
        for _ in 0..self.each {
            self.votes.push(Vote {
                turns: vec![("user", text.clone())],
                stream,
                state: State::Open,
            });
        }
    }

    /// Votes that are not there yet.
    pub(super) fn open(&self) -> Vec<usize> {
        let is_open = |at: &usize| matches!(self.votes[*at].state, State::Open | State::Unclear);
        (0..self.votes.len()).filter(is_open).collect()
    }

    pub(super) fn conversation(&self, at: usize) -> Conversation {
        let vote = &self.votes[at];
        Conversation {
            turns: vote.turns.clone(),
            vote: (at % self.each as usize) as u32,
            stream: vote.stream,
        }
    }

    /// Takes what the judge replied.
    pub(super) fn hear(&mut self, at: usize, reply: Result<String, Silence>) {
        let vote = &mut self.votes[at];
        let reply = match reply {
            Ok(reply) => reply,
            Err(silence) => {
                vote.state = State::Silent(silence);
                return;
            }
        };
        if let Some((is_correct, why)) = read(&reply) {
            let why = match (why, vote.turns.get(1)) {
                // Reminded, it gave the bare verdict; what it thinks was said before.
                ("", Some((_, earlier))) => earlier.as_str(),
                (why, _) => why,
            };
            // Thoughts that stand before the reply are no part of it.
            let why = why.rsplit("</think>").next().unwrap_or(why).trim();
            vote.state = State::Said {
                is_correct,
                why: first(why, KEPT),
            };
            return;
        }
        vote.state = State::Unclear;
        vote.turns.push(("assistant", reply));
        vote.turns.push(("user", REMINDER.to_owned()));
    }

    /// What is said of each answer.
    pub(super) fn opinions(&self) -> Vec<Opinion> {
        self.votes.chunks(self.each as usize).map(decide).collect()
    }
}

impl Vote {
    fn is_silent_for_now(&self) -> bool {
        matches!(self.state, State::Silent(Silence::ForNow(_)))
    }
}

/// More than half of all votes decide.
fn decide(votes: &[Vote]) -> Opinion {
    let counted = |wanted: bool| {
        let votes = votes.iter();
        votes.filter(move |vote| matches!(vote.state, State::Said { is_correct, .. } if is_correct == wanted))
    };
    let (correct, wrong) = (counted(true).count(), counted(false).count());
    let majority = [true, false]
        .into_iter()
        .find(|wanted| 2 * counted(*wanted).count() > votes.len());
    let Some(majority) = majority else {
        let silent = votes.iter().filter(|vote| vote.is_silent_for_now());
        return Opinion {
            is_open: 2 * (correct.max(wrong) + silent.count()) > votes.len(),
            ..Opinion::new(Outcome::Failed, undecided(votes, correct, wrong))
        };
    };
    let mut reason = counted(majority)
        .find_map(|vote| match &vote.state {
            State::Said { why, .. } if !why.is_empty() => Some(why.clone()),
            _ => None,
        })
        .unwrap_or_else(|| "the judge says so".to_owned());
    let outcome = if majority {
        Outcome::Correct
    } else {
        Outcome::Wrong
    };
    let mut agreement = None;
    if votes.len() > 1 {
        let agreeing = counted(majority).count();
        agreement = Some(agreeing as f64 / (correct + wrong) as f64);
        reason = format!("{agreeing} of {} votes: {reason}", votes.len());
    }
    Opinion {
        agreement,
        ..Opinion::new(outcome, reason)
    }
}

/// Why votes decide nothing.
fn undecided(votes: &[Vote], correct: usize, wrong: usize) -> String {
    let trouble = votes.iter().find_map(|vote| match &vote.state {
        State::Silent(silence) => {
            let message = silence.message();
            Some(format!("the judge could not be asked: {message}"))
        }
        State::Unclear => {
            let replies = vote.turns.iter().rev();
            let said = replies.into_iter().find(|(role, _)| *role == "assistant");
            let said = said
                .map(|(_, text)| first(text.trim(), SHOWN))
                .unwrap_or_default();
            Some(format!(
                "the judge gave no verdict in the form that was asked for, but {said:?}"
            ))
        }
        State::Open | State::Said { .. } => None,
    });
    let trouble = trouble.unwrap_or_default();
    if votes.len() == 1 {
        return trouble;
    }
    let unclear = votes.len() - correct - wrong;
    let mut text = format!(
        "no more than half of the votes agree: {correct} correct, {wrong} wrong, {unclear} unclear"
    );
    if !trouble.is_empty() {
        text.push_str("; ");
        text.push_str(&trouble);
    }
    text
}

/// The first characters of a text.
fn first(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
