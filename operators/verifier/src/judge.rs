//! `judge`: a model decides by a rubric.
//!
//! The judge must end its answer with a verdict in a stated form. One that does not is reminded, and after some reminders the
//! verdict is `failed`: what cannot be understood is never taken for `wrong`.

mod rubric;
mod votes;

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use engine_core::policy::Precision;
use engine_core::{Fault, OperatorError, Progress, StageEvent, StageView, seed};
use operators_endpoint::{
    Client, Endpoint, EndpointError, Part, Question as Asked, Sampling, Tally, Turn, messages,
};
use operators_verdict::{
    ExtractOptions, Extraction, FormatRule, NO_ANSWER, Outcome, Searched, TOO_LONG, extract_within,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::program::number_faults;
use crate::question::Question;
use crate::verifier::Opinion;
use rubric::Rubric;
use votes::{Silence, Votes};

/// Most bytes of an answer that a judge is shown.
const MAX_SHOWN: usize = 64 << 10;

/// A model that judges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct JudgeOptions {
    /// The server that is asked; without it, the model on the input port `judge`. What it was asked and what that cost is noted in the
    /// record of the run. Answers that it could not be asked about are asked about again by the next run, and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// What the judge is told, as a template (Jinja) with `question`, `gold`, `answer` and `text` (the whole completion). How to
    /// write the verdict is added at its end. A rubric that compares the answer with the gold answer when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rubric: Option<String>,
    /// What `answer` is: the answer that is found in the completion, or all of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub of: Searched,
    /// How the answer is found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub extract: ExtractOptions,
    /// Whether a prompt must have a gold answer. Default true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub needs_gold: bool,
    /// How often the judge is asked for each answer; more than half of the votes decide. Default 1.
    #[serde(default = "one")]
    pub votes: u32,
    /// Divides the logits of the judge; 0 decodes greedily. Several votes need more than 0. Default 0.
    #[serde(default)]
    pub temperature: f64,
    /// Most tokens that the judge may write. Default 1024.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: u32,
    /// How often a judge is reminded that gave no verdict in the form that was asked for. Default 2.
    #[serde(default = "reminders")]
    pub reminders: u32,
    /// What the judge draws by, where it draws. Default 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: u64,
    /// Number format of the weights, for a judge without `endpoint`. Default `float32`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Answers decoded at the same time, for a judge without `endpoint`. Default 64.
    #[serde(default = "max_concurrent", skip_serializing_if = "is_max_concurrent")]
    pub max_concurrent: u32,
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
}

impl Eq for JudgeOptions {}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn one() -> u32 {
    1
}

fn reminders() -> u32 {
    2
}

fn max_new_tokens() -> u32 {
    1024
}

fn max_concurrent() -> u32 {
    64
}

fn is_max_concurrent(value: &u32) -> bool {
    *value == max_concurrent()
}

/// Most votes and reminders: more are a mistake.
const MOST: u32 = 1000;

impl JudgeOptions {
    /// How a local model is loaded and sampled.
    pub(crate) fn loading(&self) -> impl fmt::Debug {
        (
            self.temperature.to_bits(),
            self.max_new_tokens,
            self.precision,
            self.max_concurrent,
        )
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        let fault = |key: &str, message: String| Fault::at("wrong-value", key, message);
        let mut faults = number_faults(&[
            ("votes", Some(u64::from(self.votes))),
            ("max-new-tokens", Some(u64::from(self.max_new_tokens))),
            ("max-concurrent", Some(u64::from(self.max_concurrent))),
        ]);
        for (key, value) in [("votes", self.votes), ("reminders", self.reminders)] {
            if value > MOST {
                faults.push(fault(
                    key,
                    format!("`{key}` is {value}; at most {MOST} make sense"),
                ));
            }
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let message = format!(
                "`temperature` is {} and must be at least 0",
                self.temperature
            );
            faults.push(fault("temperature", message));
        } else if self.votes > 1 && self.temperature == 0.0 {
            let message = "a judge that decodes greedily gives the same vote each time".to_owned();
            faults.push(
                fault("votes", message)
                    .with_help("set a `temperature` above 0, or leave `votes` out"),
            );
        }
        if let Err(message) = Rubric::new(self.rubric.as_deref()) {
            faults.push(fault("rubric", message));
        }
        if let Some(endpoint) = &self.endpoint {
            faults.extend(endpoint.faults().into_iter().map(|(key, message)| Fault {
                path: vec!["endpoint".to_owned(), key.to_owned()],
                ..Fault::new("wrong-value", message)
            }));
        }
        faults
    }
}

/// What a model that judges is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Roles (`user`, `assistant`) and texts.
    pub turns: Vec<(&'static str, String)>,
    /// Which of several answers to the same conversation this one is.
    pub vote: u32,
    /// Names the random stream of this conversation and vote.
    pub stream: u64,
}

/// A model that is loaded, for judges without a server.
pub trait JudgeModel: Send {
    /// Answers, in the order of the conversations, or why there is no answer.
    ///
    /// # Errors
    /// When the model fails or the run was asked to stop.
    fn answer(
        &mut self,
        conversations: &[Conversation],
        view: &dyn StageView,
    ) -> Result<Vec<Result<String, String>>, OperatorError>;
}

/// A judge at work.
#[derive(Debug)]
pub(crate) struct Judge {
    options: JudgeOptions,
    rubric: Rubric,
    client: Option<Client>,
}

impl Judge {
    pub(crate) fn new(options: &JudgeOptions, view: &dyn StageView) -> Result<Self, OperatorError> {
        let client = options.endpoint.as_ref().map(Client::new).transpose();
        let client = client.map_err(stage_error)?;
        // Beside the folders of stages, which go when their process does: for the part that a killed process was at.
        if let (Some(client), Some(folder)) = (&client, view.scratch().parent()) {
            client.keep_answers(&folder.join("metis-flow-requests"));
        }
        Ok(Self {
            rubric: Rubric::new(options.rubric.as_deref()).map_err(OperatorError::Data)?,
            client,
            options: options.clone(),
        })
    }

    /// What the server was asked so far, and what it cost; none for a local model.
    pub(crate) fn account(&self) -> Option<String> {
        let account = self.client.as_ref()?.account()?;
        Some(format!("judge: {account}"))
    }

    /// Judges some of the questions, in the order of their places. Equal ones are asked once.
    ///
    /// # Errors
    /// When the server is gone, the model fails, or the run was asked to stop.
    pub(crate) fn judge(
        &self,
        questions: &[Question<'_>],
        asked: &[usize],
        model: Option<&Mutex<Box<dyn JudgeModel>>>,
        is_bare: bool,
        view: &dyn StageView,
    ) -> Result<Vec<Opinion>, OperatorError> {
        let mut votes = Votes::new(&self.options);
        let mut known: HashMap<String, usize> = HashMap::new();
        // What is known already, or the place among the votes and the answer that is judged.
        let mut drafts: Vec<Result<(usize, String), Opinion>> = Vec::with_capacity(asked.len());
        for place in asked {
            let question = &questions[*place];
            drafts.push(match self.answer(question.text, is_bare) {
                Ok(answer) => match self.rubric.render(question, &answer) {
                    Ok(text) => {
                        let next = known.len();
                        let at = *known.entry(text.clone()).or_insert(next);
                        if at == next {
                            votes.add(text);
                        }
                        Ok((at, answer))
                    }
                    Err(message) => Err(Opinion::new(Outcome::Failed, message)),
                },
                Err((outcome, reason)) => Err(Opinion::new(outcome, reason)),
            });
        }
        self.collect(&mut votes, model, view)?;
        let told = votes.opinions();
        let opinion = |draft: Result<(usize, String), Opinion>| match draft {
            Ok((at, answer)) => Opinion {
                extracted: (self.options.of == Searched::Answer).then_some(answer),
                ..told[at].clone()
            },
            Err(opinion) => opinion,
        };
        Ok(drafts.into_iter().map(opinion).collect())
    }

    /// What is shown as the answer.
    fn answer(&self, text: &str, is_bare: bool) -> Result<String, (Outcome, &'static str)> {
        let whole = || match text.trim() {
            "" => Err((Outcome::Unparsed, NO_ANSWER)),
            long if long.len() > MAX_SHOWN => Err((Outcome::TimedOut, TOO_LONG)),
            text => Ok(text.to_owned()),
        };
        if self.options.of == Searched::Completion {
            return whole();
        }
        match extract_within(text, self.options.extract, MAX_SHOWN) {
            Extraction::Answer(answer) => Ok(answer.into_owned()),
            Extraction::TooLong => Err((Outcome::TimedOut, TOO_LONG)),
            Extraction::None if is_bare => whole(),
            Extraction::None => Err((Outcome::Unparsed, NO_ANSWER)),
        }
    }

    /// Asks until every vote is there, or the reminders are used up.
    fn collect(
        &self,
        votes: &mut Votes,
        model: Option<&Mutex<Box<dyn JudgeModel>>>,
        view: &dyn StageView,
    ) -> Result<(), OperatorError> {
        for _ in 0..=self.options.reminders {
            let open = votes.open();
            if open.is_empty() {
                break;
            }
            let conversations: Vec<Conversation> =
                open.iter().map(|at| votes.conversation(*at)).collect();
            let replies = match (&self.client, model) {
                (Some(client), _) => self.ask_server(client, &conversations, view)?,
                (None, Some(model)) => {
                    let mut model = model.lock().unwrap_or_else(PoisonError::into_inner);
                    let answers = model.answer(&conversations, view)?.into_iter();
                    let reply = |answer: Result<_, _>| answer.map_err(Silence::ForGood);
                    answers.map(reply).collect()
                }
                (None, None) => {
                    return Err(OperatorError::Data(
                        "a judge has no model: set its `endpoint`, or connect a model to the input `judge` of the stage"
                            .to_owned(),
                    ));
                }
            };
            for (at, reply) in open.into_iter().zip(replies) {
                votes.hear(at, reply);
            }
        }
        Ok(())
    }

    fn ask_server(
        &self,
        client: &Client,
        conversations: &[Conversation],
        view: &dyn StageView,
    ) -> Result<Vec<Result<String, Silence>>, OperatorError> {
        let turn = |(role, text): &(&'static str, String)| Turn {
            role: (*role).to_owned(),
            content: vec![Part::Text(text.clone())],
        };
        let question = |conversation: &Conversation| {
            let turns: Vec<Turn> = conversation.turns.iter().map(turn).collect();
            Asked {
                messages: messages(&turns),
                seed: seed::derive(conversation.stream, &format!("vote {}", conversation.vote)),
            }
        };
        let asked: Vec<Asked> = conversations.iter().map(question).collect();
        let sampling = Sampling::new(self.options.temperature, self.options.max_new_tokens);
        let mut watch = |tally: &Tally| {
            view.event(StageEvent::Progress(Progress {
                unit: "rows".to_owned(),
                note: format!("judge: {tally}"),
                ..Progress::default()
            }));
            if view.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let answers = client
            .ask(&asked, &sampling, &mut watch)
            .map_err(stage_error)?;
        if let Some(end) = answers.end {
            // Half of the votes are no judgement; what was answered is asked again after that.
            return Err(stage_error(end));
        }
        let texts = answers.answers.into_iter();
        Ok(texts
            .map(|answer| answer.map(|answer| answer.text).map_err(Silence::ForNow))
            .collect())
    }
}

fn stage_error(error: EndpointError) -> OperatorError {
    match error {
        EndpointError::Interrupted => OperatorError::Interrupted,
        other => OperatorError::Data(format!("judge: {other}")),
    }
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
