//! A whole configuration at work: rules side by side, programs and judges where they matter.

use std::borrow::Cow;
use std::sync::Mutex;

use engine_core::{OperatorError, StageContext, StageEvent, StageView};
use operators_verdict::{
    GoldError, Judgement, Outcome, Prepared, Verdict, VerifyConfig as Rule, agreement, is_settled,
    reason, together,
};
use rayon::prelude::*;

use crate::config::{Cost, VerifyConfig};
use crate::exec::Programs;
use crate::judge::{Judge, JudgeModel};
use crate::question::{Judged, Question};

/// Questions that one thread judges in a row: those with the same gold answer have it read once.
const RUN: usize = 64;

/// Runs a configuration.
#[derive(Debug)]
pub struct Verifier {
    config: VerifyConfig,
    node: Node,
    /// The model for judges without a server.
    model: Option<LoadedModel>,
    /// Whether texts are answers that may stand alone, not completions.
    is_bare: bool,
}

struct LoadedModel(Mutex<Box<dyn JudgeModel>>);

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("LoadedModel(..)")
    }
}

/// A verifier in the tree of all and any.
#[derive(Debug)]
enum Node {
    Rule(Rule),
    Exec(Box<Programs>),
    Judge(Box<Judge>),
    Several { all: bool, parts: Vec<Part> },
}

/// One of several verifiers.
#[derive(Debug)]
struct Part {
    name: &'static str,
    cost: Cost,
    node: Node,
}

/// What one verifier says, apart from the form of the completion.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Opinion {
    pub(crate) outcome: Outcome,
    pub(crate) extracted: Option<String>,
    pub(crate) agreement: Option<f64>,
    pub(crate) reason: Cow<'static, str>,
    /// As [`Judged::is_open`].
    pub(crate) is_open: bool,
}

impl Opinion {
    pub(crate) fn new(outcome: Outcome, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            outcome,
            extracted: None,
            agreement: None,
            reason: reason.into(),
            is_open: false,
        }
    }
}

impl Node {
    /// Visits the judges in it.
    fn each_judge(&self, visit: &mut dyn FnMut(&Judge)) {
        match self {
            Self::Judge(judge) => visit(judge),
            Self::Several { parts, .. } => {
                for part in parts {
                    part.node.each_judge(visit);
                }
            }
            Self::Rule(_) | Self::Exec(_) => {}
        }
    }

    fn open(
        config: &VerifyConfig,
        context: &StageContext<'_>,
        view: &dyn StageView,
    ) -> Result<Self, OperatorError> {
        if let Some(rule) = config.rule() {
            return Ok(Self::Rule(rule));
        }
        Ok(match config {
            VerifyConfig::Exec(options) => Self::Exec(Box::new(Programs::new(options, context)?)),
            VerifyConfig::Judge(options) => Self::Judge(Box::new(Judge::new(options, view)?)),
            VerifyConfig::All(several) | VerifyConfig::Any(several) => {
                let part = |part: &VerifyConfig| {
                    Ok(Part {
                        name: part.name(),
                        cost: part.cost(),
                        node: Self::open(part, context, view)?,
                    })
                };
                let parts: Result<_, OperatorError> = several.of.iter().map(part).collect();
                Self::Several {
                    all: matches!(config, VerifyConfig::All(_)),
                    parts: parts?,
                }
            }
            _ => {
                let message = format!("the rule `{}` was not taken for one", config.name());
                return Err(OperatorError::Internal(message));
            }
        })
    }
}

impl Verifier {
    /// Prepares to judge. Keys of servers are read from the environment; programs start with the first question.
    ///
    /// # Errors
    /// When a variable of the environment is missing.
    pub fn open(
        config: &VerifyConfig,
        context: &StageContext<'_>,
        view: &dyn StageView,
    ) -> Result<Self, OperatorError> {
        Ok(Self {
            node: Node::open(config, context, view)?,
            config: config.clone(),
            model: None,
            is_bare: false,
        })
    }

    /// With a model for judges that have no server.
    #[must_use]
    pub fn with_model(mut self, model: Box<dyn JudgeModel>) -> Self {
        self.set_model(model);
        self
    }

    /// Takes a model for judges that have no server.
    pub fn set_model(&mut self, model: Box<dyn JudgeModel>) {
        self.model = Some(LoadedModel(Mutex::new(model)));
    }

    /// Whether it asks a loaded model, which works on the thread that calls.
    #[must_use]
    pub fn has_model(&self) -> bool {
        self.model.is_some()
    }

    /// For answers that may stand alone: where nothing is marked as the answer, the whole text is.
    #[must_use]
    pub fn of_bare_answers(self) -> Self {
        Self {
            is_bare: true,
            ..self
        }
    }

    /// Tells what judges behind servers were asked and what they cost, for the record of the run. To be called once, when all is
    /// judged.
    pub fn tell_account(&self, view: &dyn StageView) {
        self.node.each_judge(&mut |judge| {
            if let Some(account) = judge.account() {
                view.event(StageEvent::Note(account));
            }
        });
    }

    /// Judges completions, in their order. A gold answer is read once for questions that follow each other.
    ///
    /// # Errors
    /// When nothing can be judged: a program cannot be started, a server is gone, the run was asked to stop.
    pub fn judge(
        &self,
        questions: &[Question<'_>],
        view: &dyn StageView,
    ) -> Result<Vec<Judged>, OperatorError> {
        if let Node::Rule(rule) = &self.node {
            let judged = questions.par_chunks(RUN).flat_map_iter(|questions| {
                self.by_rule(rule, questions.iter(), |judgement| Judged {
                    verdict: judgement.verdict,
                    agreement: judgement.agreement,
                    reason: judgement.reason,
                    is_open: false,
                })
            });
            return Ok(judged.collect());
        }
        let mut opinions: Vec<Option<Opinion>> = vec![None; questions.len()];
        let mut asked = Vec::with_capacity(questions.len());
        let mut last: Option<(Option<&str>, Option<GoldError>)> = None;
        for (place, question) in questions.iter().enumerate() {
            if last.as_ref().is_none_or(|(gold, _)| *gold != question.gold) {
                last = Some((question.gold, self.config.check_gold(question.gold).err()));
            }
            match &last {
                Some((_, Some(error))) => opinions[place] = Some(unreadable(error)),
                _ => asked.push(place),
            }
        }
        let told = self.opinions(&self.node, questions, &asked, view)?;
        for (place, opinion) in asked.into_iter().zip(told) {
            opinions[place] = Some(opinion);
        }
        let format = self.config.format();
        let judged = questions
            .par_iter()
            .zip(opinions)
            .map(|(question, opinion)| {
                let opinion = opinion.expect("every question was asked or has no gold answer");
                Judged {
                    verdict: Verdict {
                        outcome: opinion.outcome,
                        extracted: opinion.extracted,
                        format_ok: format.holds(question.text),
                    },
                    agreement: opinion.agreement,
                    reason: opinion.reason,
                    is_open: opinion.is_open,
                }
            });
        Ok(judged.collect())
    }

    /// What a verifier says of the questions at some places, in their order.
    fn opinions(
        &self,
        node: &Node,
        questions: &[Question<'_>],
        asked: &[usize],
        view: &dyn StageView,
    ) -> Result<Vec<Opinion>, OperatorError> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        match node {
            Node::Rule(rule) => {
                let opinions = asked.par_chunks(RUN).flat_map_iter(|asked| {
                    let questions = asked.iter().map(|place| &questions[*place]);
                    self.by_rule(rule, questions, |judgement| Opinion {
                        outcome: judgement.verdict.outcome,
                        extracted: judgement.verdict.extracted,
                        agreement: judgement.agreement,
                        reason: judgement.reason,
                        is_open: false,
                    })
                });
                Ok(opinions.collect())
            }
            Node::Exec(programs) => programs.judge(questions, asked, view),
            Node::Judge(judge) => {
                let model = self.model.as_ref().map(|LoadedModel(model)| model);
                judge.judge(questions, asked, model, self.is_bare, view)
            }
            Node::Several { all, parts } => self.together(*all, parts, questions, asked, view),
        }
    }

    /// Asks several verifiers, the cheap ones first, and the others only where they can still change something.
    fn together(
        &self,
        all: bool,
        parts: &[Part],
        questions: &[Question<'_>],
        asked: &[usize],
        view: &dyn StageView,
    ) -> Result<Vec<Opinion>, OperatorError> {
        let mut said: Vec<Vec<(&Part, Opinion)>> = asked.iter().map(|_| Vec::new()).collect();
        let mut order: Vec<&Part> = parts.iter().collect();
        order.sort_by_key(|part| part.cost);
        for part in order {
            let is_open = |said: &[(&Part, Opinion)]| {
                let outcomes: Vec<Outcome> = said.iter().map(|(_, o)| o.outcome).collect();
                // All rules are asked, so that the share of those that agree means the same everywhere.
                part.cost == Cost::Rule || !is_settled(&outcomes, all)
            };
            let open: Vec<usize> = (0..asked.len()).filter(|at| is_open(&said[*at])).collect();
            let places: Vec<usize> = open.iter().map(|at| asked[*at]).collect();
            let opinions = self.opinions(&part.node, questions, &places, view)?;
            for (at, opinion) in open.into_iter().zip(opinions) {
                said[at].push((part, opinion));
            }
        }
        Ok(said.into_iter().map(|said| combined(all, said)).collect())
    }

    /// What a rule says of questions that follow each other.
    fn by_rule<'q, T>(
        &self,
        rule: &Rule,
        questions: impl Iterator<Item = &'q Question<'q>>,
        make: impl Fn(Judgement) -> T,
    ) -> Vec<T> {
        let mut last: Option<(Option<&str>, Result<Prepared, GoldError>)> = None;
        let mut judged = Vec::with_capacity(questions.size_hint().0);
        for question in questions {
            let gold = match &mut last {
                Some((known, gold)) if *known == question.gold => &*gold,
                slot => {
                    &slot
                        .insert((question.gold, prepared(rule, question.gold)))
                        .1
                }
            };
            judged.push(make(match gold {
                Ok(gold) if self.is_bare => bare(rule, gold, question.text),
                Ok(gold) => rule.judge_with_reason(gold, question.text),
                Err(error) => Judgement {
                    verdict: Verdict {
                        outcome: Outcome::Failed,
                        extracted: None,
                        format_ok: rule.format().holds(question.text),
                    },
                    agreement: None,
                    reason: unreadable(error).reason,
                },
            }));
        }
        judged
    }
}

/// Reads a gold answer, if the prompt has one.
fn prepared(rule: &Rule, gold: Option<&str>) -> Result<Prepared, GoldError> {
    match gold {
        None if rule.needs_gold() => Err(GoldError::Missing),
        gold => rule.prepare(gold.unwrap_or_default()),
    }
}

/// What is said where the gold answer cannot be used.
fn unreadable(error: &GoldError) -> Opinion {
    Opinion::new(Outcome::Failed, format!("gold answer: {error}"))
}

/// Judges an answer that may stand alone.
fn bare(rule: &Rule, gold: &Prepared, answer: &str) -> Judgement {
    let (outcome, reason, extracted) = rule.judge_answer(gold, answer);
    Judgement {
        verdict: Verdict {
            outcome,
            extracted: Some(extracted.into_owned()).filter(|text| !text.is_empty()),
            format_ok: rule.format().holds(answer),
        },
        agreement: None,
        reason: reason.into(),
    }
}

/// What several verifiers say together.
fn combined(all: bool, said: Vec<(&Part, Opinion)>) -> Opinion {
    let outcomes: Vec<Outcome> = said.iter().map(|(_, opinion)| opinion.outcome).collect();
    let is_open = said.iter().any(|(_, opinion)| opinion.is_open) && !is_settled(&outcomes, all);
    let outcome = if is_open {
        // Who could not be asked may have said otherwise.
        Outcome::Failed
    } else {
        together(&outcomes, all)
    };
    let named = said
        .iter()
        .map(|(part, opinion)| ((part.name, opinion.outcome), &opinion.reason));
    Opinion {
        agreement: agreement(&outcomes, outcome),
        reason: reason(named).into(),
        extracted: said.into_iter().find_map(|(_, opinion)| opinion.extracted),
        outcome,
        is_open,
    }
}

#[cfg(test)]
#[path = "verifier_tests.rs"]
mod tests;
