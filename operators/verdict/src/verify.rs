//! The verifiers as a pipeline names them, and what they say of one completion.

use std::borrow::Cow;

use num_rational::BigRational;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::extract::{ExtractOptions, Extraction, MAX_ANSWER_BYTES, extract_with};
use crate::format::{FormatRule, has_blocks};
use crate::options::{
    ChoiceOptions, CombineOptions, ExactOptions, FormatOptions, MathOptions, NumericOptions,
    RegexOptions, Searched,
};
use crate::outcome::{Explanation, GoldError, Judgement, Outcome, Verdict};
use crate::{choice, combine, math, numeric, pattern};

/// How completions are compared with gold answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VerifyConfig {
    /// The same text, apart from white space.
    Exact(ExactOptions),
    /// The same mathematics: numbers in any form (exact, so `0.5`, `1/2` and `50%` are equal), expressions, equations,
    /// intervals, sets, tuples, matrices; or the same text apart from case, spacing and LaTeX dress.
    Math(MathOptions),
    /// The same letters of a multiple choice, in any order.
    Choice(ChoiceOptions),
    /// A number within a tolerance.
    Numeric(NumericOptions),
    /// A text that a regular expression matches.
    Regex(RegexOptions),
    /// Tags in the right order, exactly once. Needs no gold answer.
    Format(FormatOptions),
    /// Correct where all of several verifiers say so.
    All(CombineOptions),
    /// Correct where at least one of several verifiers says so.
    Any(CombineOptions),
}

/// A gold answer that has been read, for the verifier that read it.
#[derive(Clone, Debug)]
pub struct Prepared(Ready);

#[derive(Clone, Debug)]
enum Ready {
    Exact(String),
    Math(Box<math::Read>),
    Choice(u32),
    Numeric(Box<BigRational>),
    Regex(Box<Regex>),
    Format,
    Several(Vec<Option<Prepared>>),
}

/// Why a completion is `unparsed`.
pub const NO_ANSWER: &str = "the completion has no answer";
/// Why an answer is `timed-out` before anything looked at it.
pub const TOO_LONG: &str = "the answer is longer than any that is looked at";
/// Why one of several verifiers cannot judge.
const UNREADABLE: &str = "it cannot read the gold answer";
/// Why several verifiers say what they say.
const TOGETHER: &str = "several verifiers together";

/// An outcome and why.
type Judged = (Outcome, &'static str);

/// What several verifiers say, each: outcomes, reasons, and the first answer that was found.
type Each = (Vec<Outcome>, Vec<Cow<'static, str>>, Option<String>);

impl VerifyConfig {
    /// Name and version, for the `verifier` column.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exact(_) => "exact 1",
            Self::Math(_) => "math 2",
            Self::Choice(_) => "choice 1",
            Self::Numeric(_) => "numeric 1",
            Self::Regex(_) => "regex 1",
            Self::Format(_) => "format 1",
            Self::All(_) => "all 1",
            Self::Any(_) => "any 1",
        }
    }

    /// The form that completions must have.
    #[must_use]
    pub fn format(&self) -> FormatRule {
        match self {
            Self::Exact(options) => options.format,
            Self::Math(options) => options.format,
            Self::Choice(options) => options.format,
            Self::Numeric(options) => options.format,
            Self::Regex(options) => options.format,
            Self::Format(_) => FormatRule::Any,
            Self::All(options) | Self::Any(options) => options.format,
        }
    }

    /// Whether a prompt must have a gold answer.
    #[must_use]
    pub fn needs_gold(&self) -> bool {
        match self {
            Self::Format(_) => false,
            Self::Regex(options) => options.pattern.contains("{gold}"),
            Self::All(options) | Self::Any(options) => options.of.iter().any(Self::needs_gold),
            _ => true,
        }
    }

    fn extraction(&self) -> ExtractOptions {
        match self {
            Self::Exact(options) => options.extract,
            Self::Math(options) => options.extract,
            Self::Choice(options) => options.extract,
            Self::Numeric(options) => options.extract,
            Self::Regex(options) => options.extract,
            Self::Format(_) | Self::All(_) | Self::Any(_) => ExtractOptions::default(),
        }
    }

    /// Whether a gold answer can be compared with anything.
    ///
    /// # Errors
    /// When it is empty, too large or malformed.
    pub fn check_gold(&self, gold: &str) -> Result<(), GoldError> {
        self.prepare(gold).map(|_| ())
    }

    /// Reads a gold answer, once for all completions that are compared with it.
    ///
    /// # Errors
    /// When it is empty, too large or malformed.
    pub fn prepare(&self, gold: &str) -> Result<Prepared, GoldError> {
        let text = gold.trim();
        if self.needs_gold() && text.is_empty() {
            return Err(GoldError::Empty);
        }
        if gold.len() > MAX_ANSWER_BYTES {
            return Err(GoldError::TooLong(gold.len()));
        }
        let ready = match self {
            Self::Exact(_) => Ready::Exact(gold.to_owned()),
            Self::Math(_) => Ready::Math(Box::new(math::read_gold(text)?)),
            Self::Choice(options) => {
                let allowed = choice::allowed(options.letters.as_deref());
                let letters = choice::letters(text, allowed)
                    .ok_or_else(|| GoldError::NoChoice(choice::spelled(allowed)))?;
                Ready::Choice(letters)
            }
            Self::Numeric(_) => Ready::Numeric(Box::new(numeric::gold(text)?)),
            Self::Regex(options) => {
                Ready::Regex(Box::new(pattern::compile(&options.pattern, text)?))
            }
            Self::Format(_) => Ready::Format,
            Self::All(options) | Self::Any(options) => {
                let parts: Vec<Result<Prepared, GoldError>> =
                    options.of.iter().map(|part| part.prepare(gold)).collect();
                let is_any = matches!(self, Self::Any(_));
                let failures: Vec<&GoldError> = parts
                    .iter()
                    .filter_map(|part| part.as_ref().err())
                    .collect();
                // One that cannot judge spoils `all`; `any` needs one that can.
                if let Some(first) = failures.first()
                    && (!is_any || failures.len() == parts.len())
                {
                    return Err(GoldError::NoVerifier(first.to_string()));
                }
                if parts.is_empty() {
                    return Err(GoldError::NoVerifier("there is none".to_owned()));
                }
                Ready::Several(parts.into_iter().map(Result::ok).collect())
            }
        };
        Ok(Prepared(ready))
    }

    /// Judges one completion. A gold answer that [`VerifyConfig::check_gold`] refuses gives [`Outcome::Failed`].
    #[must_use]
    pub fn verdict(&self, gold: &str, completion: &str) -> Verdict {
        match self.prepare(gold) {
            Ok(prepared) => self.judge(&prepared, completion),
            Err(_) => Verdict {
                outcome: Outcome::Failed,
                extracted: None,
                format_ok: self.format().holds(completion),
            },
        }
    }

    /// Judges one completion by a gold answer that has been read.
    #[must_use]
    pub fn judge(&self, gold: &Prepared, completion: &str) -> Verdict {
        self.judge_with_reason(gold, completion).verdict
    }

    /// Whether it is several verifiers together.
    #[must_use]
    pub fn is_combined(&self) -> bool {
        matches!(self, Self::All(_) | Self::Any(_))
    }

    /// [`VerifyConfig::judge`], with the reason, and the share of several verifiers that say what is said together, of those
    /// that can judge.
    #[must_use]
    pub fn judge_with_reason(&self, gold: &Prepared, completion: &str) -> Judgement {
        let (outcome, reason, extracted, agreement) = self.judged(gold, completion);
        Judgement {
            verdict: Verdict {
                outcome,
                extracted,
                format_ok: self.format().holds(completion),
            },
            agreement,
            reason,
        }
    }

    fn judged(
        &self,
        gold: &Prepared,
        completion: &str,
    ) -> (Outcome, Cow<'static, str>, Option<String>, Option<f64>) {
        if let (Self::All(options) | Self::Any(options), Ready::Several(parts)) = (self, &gold.0) {
            let (outcomes, reasons, extracted) = each(options, parts, completion);
            let outcome = combine::together(&outcomes, matches!(self, Self::All(_)));
            let names = options.of.iter().map(Self::name);
            let reason = combine::reason(names.zip(outcomes.iter().copied()).zip(&reasons));
            let agreement = combine::agreement(&outcomes, outcome);
            return (outcome, reason.into(), extracted, agreement);
        }
        let ((outcome, reason), extracted) = self.judged_alone(gold, completion);
        (outcome, reason.into(), extracted, None)
    }

    /// What one verifier says that is not made of several.
    fn judged_alone(&self, gold: &Prepared, completion: &str) -> (Judged, Option<String>) {
        match (self, &gold.0) {
            (Self::Format(options), _) => (tagged(options, completion), None),
            (Self::Regex(options), Ready::Regex(regex)) if options.of == Searched::Completion => {
                (searched(regex, completion), None)
            }
            _ => match extract_with(completion, self.extraction()) {
                Extraction::None => ((Outcome::Unparsed, NO_ANSWER), None),
                Extraction::TooLong => ((Outcome::TimedOut, TOO_LONG), None),
                Extraction::Answer(answer) => {
                    (self.compared(gold, &answer), Some(answer.into_owned()))
                }
            },
        }
    }

    /// Judges an answer that may stand alone: where nothing is marked as the answer, the whole text is. Gives the
    /// outcome, the reason, and the answer.
    #[must_use]
    pub fn judge_answer<'a>(
        &self,
        gold: &Prepared,
        answer: &'a str,
    ) -> (Outcome, &'static str, Cow<'a, str>) {
        let extracted = match extract_with(answer, self.extraction()) {
            Extraction::Answer(extracted) => extracted,
            Extraction::TooLong => Cow::Borrowed(answer),
            Extraction::None => Cow::Borrowed(answer.trim()),
        };
        if let (Self::All(options) | Self::Any(options), Ready::Several(parts)) = (self, &gold.0) {
            let outcomes = each_alone(options, parts, answer);
            let outcome = combine::together(&outcomes, matches!(self, Self::All(_)));
            return (outcome, TOGETHER, extracted);
        }
        let is_whole = matches!(self, Self::Regex(options) if options.of == Searched::Completion);
        if is_whole || matches!(gold.0, Ready::Format) {
            let ((outcome, reason), _) = self.judged_alone(gold, answer);
            return (outcome, reason, extracted);
        }
        if extracted.is_empty() {
            return (Outcome::Unparsed, "there is no answer", extracted);
        }
        if extracted.len() > MAX_ANSWER_BYTES {
            return (Outcome::TimedOut, TOO_LONG, Cow::Borrowed(""));
        }
        let (outcome, reason) = self.compared(gold, &extracted);
        (outcome, reason, extracted)
    }

    /// Compares an answer that stands alone.
    fn compared(&self, gold: &Prepared, answer: &str) -> Judged {
        match (self, &gold.0) {
            (Self::Exact(_), Ready::Exact(gold)) => {
                if gold.split_whitespace().eq(answer.split_whitespace()) {
                    (Outcome::Correct, "the same text")
                } else {
                    (Outcome::Wrong, "another text")
                }
            }
            (Self::Math(_), Ready::Math(gold)) => {
                let decision = math::compare(gold, answer);
                (decision.outcome, decision.reason)
            }
            (Self::Choice(options), Ready::Choice(gold)) => {
                match choice::letters(answer, choice::allowed(options.letters.as_deref())) {
                    None => (Outcome::Wrong, "the answer names no choice"),
                    Some(letters) if letters == *gold => (Outcome::Correct, "the same choice"),
                    Some(_) => (Outcome::Wrong, "another choice"),
                }
            }
            (Self::Numeric(options), Ready::Numeric(gold)) => {
                numeric::compare(gold, answer, options.absolute, options.relative)
            }
            (Self::Regex(_), Ready::Regex(regex)) => searched(regex, answer),
            _ => (
                Outcome::Failed,
                "the gold answer was read for another verifier",
            ),
        }
    }

    /// Judges an answer as [`VerifyConfig::judge_answer`] does, and says why.
    #[must_use]
    pub fn explain_answer(&self, gold: &str, answer: &str) -> Explanation {
        let mut told = Explanation {
            verdict: Verdict {
                outcome: Outcome::Failed,
                extracted: None,
                format_ok: self.format().holds(answer),
            },
            reason: String::new(),
            gold: gold.trim().to_owned(),
            answer: None,
            parts: Vec::new(),
            agreement: None,
        };
        let ready = match self.prepare(gold) {
            Ok(ready) => ready,
            Err(error) => {
                told.reason = format!("gold answer: {error}");
                return told;
            }
        };
        let (outcome, reason, extracted) = self.judge_answer(&ready, answer);
        let shown = |text: &str| match self {
            Self::Math(_) | Self::Numeric(_) => math::shown(text),
            _ => text.trim().to_owned(),
        };
        told.gold = shown(gold);
        told.answer = (!extracted.is_empty()).then(|| shown(&extracted));
        told.verdict.outcome = outcome;
        told.verdict.extracted = Some(extracted.into_owned()).filter(|text| !text.is_empty());
        reason.clone_into(&mut told.reason);
        if let (Self::All(options) | Self::Any(options), Ready::Several(parts)) = (self, &ready.0) {
            let outcomes = each_alone(options, parts, answer);
            told.agreement = combine::agreement(&outcomes, outcome);
            let names = options.of.iter().map(|part| part.name().to_owned());
            told.parts = names.zip(outcomes).collect();
        }
        told
    }
}

/// What each of several verifiers says, and the first answer that was found.
fn each(options: &CombineOptions, parts: &[Option<Prepared>], completion: &str) -> Each {
    let mut outcomes = Vec::with_capacity(parts.len());
    let mut reasons = Vec::with_capacity(parts.len());
    let mut found = None;
    for (config, gold) in options.of.iter().zip(parts) {
        let (outcome, reason) = match gold {
            Some(gold) => {
                let (outcome, reason, extracted, _) = config.judged(gold, completion);
                found = found.or(extracted);
                (outcome, reason)
            }
            None => (Outcome::Failed, UNREADABLE.into()),
        };
        outcomes.push(outcome);
        reasons.push(reason);
    }
    (outcomes, reasons, found)
}

/// What each of several verifiers says of an answer that may stand alone.
fn each_alone(options: &CombineOptions, parts: &[Option<Prepared>], answer: &str) -> Vec<Outcome> {
    let of_part = |(config, gold): (&VerifyConfig, &Option<Prepared>)| match gold {
        Some(gold) => config.judge_answer(gold, answer).0,
        None => Outcome::Failed,
    };
    options.of.iter().zip(parts).map(of_part).collect()
}

fn tagged(options: &FormatOptions, completion: &str) -> Judged {
    if has_blocks(completion, &options.tags) {
        (Outcome::Correct, "the tags are in order")
    } else {
        (
            Outcome::Wrong,
            "a tag is missing, doubled, empty or out of order",
        )
    }
}

fn searched(regex: &Regex, text: &str) -> Judged {
    if text.len() > pattern::MAX_SEARCHED {
        return (
            Outcome::TimedOut,
            "the text is longer than any that is searched",
        );
    }
    if regex.is_match(text) {
        (Outcome::Correct, "the pattern matches")
    } else {
        (Outcome::Wrong, "the pattern does not match")
    }
}

#[cfg(test)]
mod tests;
