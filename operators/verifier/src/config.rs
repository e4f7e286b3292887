//! The verifiers as a pipeline names them.

use std::path::Path;

use engine_core::{External, Fault};
use operators_endpoint::Endpoint;
use operators_verdict::{
    ChoiceOptions, CombineOptions, ExactOptions, FormatOptions, FormatRule, GoldError, MathOptions,
    NumericOptions, RegexOptions, VerifyConfig as Rule,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exec::ExecOptions;
use crate::judge::JudgeOptions;
use crate::program;

/// How completions are judged.
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
    /// What a program of your own says, in any language.
    Exec(Box<ExecOptions>),
    /// What a model says, by a rubric: for answers that no rule can check.
    Judge(Box<JudgeOptions>),
    /// Correct where all of several verifiers say so. Programs and judges are asked last, and only where they can matter.
    All(Several),
    /// Correct where at least one of several verifiers says so. Programs and judges are asked last, and only where no other
    /// says `correct`.
    Any(Several),
}

/// Options of `all` and `any`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Several {
    /// The verifiers.
    pub of: Vec<VerifyConfig>,
    /// Form that a completion must have.
    #[serde(default)]
    pub format: FormatRule,
}

/// What asking a verifier costs; cheap ones are asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cost {
    Rule,
    Program,
    Judge,
}

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
            Self::Exec(_) => "exec 1",
            Self::Judge(_) => "judge 1",
            Self::All(_) => "all 1",
            Self::Any(_) => "any 1",
        }
    }

    /// The same as a rule, where nothing but rules is in it.
    #[must_use]
    pub fn rule(&self) -> Option<Rule> {
        let several = |several: &Several| {
            Some(CombineOptions {
                of: several.of.iter().map(Self::rule).collect::<Option<_>>()?,
                format: several.format,
            })
        };
        Some(match self {
            Self::Exact(options) => Rule::Exact(*options),
            Self::Math(options) => Rule::Math(*options),
            Self::Choice(options) => Rule::Choice(options.clone()),
            Self::Numeric(options) => Rule::Numeric(*options),
            Self::Regex(options) => Rule::Regex(options.clone()),
            Self::Format(options) => Rule::Format(options.clone()),
            Self::Exec(_) | Self::Judge(_) => return None,
            Self::All(options) => Rule::All(several(options)?),
            Self::Any(options) => Rule::Any(several(options)?),
        })
    }

    /// Whether rules alone decide: no program, no model.
    #[must_use]
    pub fn is_rule(&self) -> bool {
        self.cost() == Cost::Rule
    }

    pub(crate) fn cost(&self) -> Cost {
        match self {
            Self::Exec(_) => Cost::Program,
            Self::Judge(_) => Cost::Judge,
            Self::All(several) | Self::Any(several) => {
                let costs = several.of.iter().map(Self::cost);
                costs.max().unwrap_or(Cost::Rule)
            }
            _ => Cost::Rule,
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
            Self::Exec(options) => options.format,
            Self::Judge(options) => options.format,
            Self::All(options) | Self::Any(options) => options.format,
        }
    }

    /// Whether a prompt must have a gold answer.
    #[must_use]
    pub fn needs_gold(&self) -> bool {
        match self {
            Self::Exec(options) => options.needs_gold,
            Self::Judge(options) => options.needs_gold,
            Self::All(several) | Self::Any(several) => several.of.iter().any(Self::needs_gold),
            other => other.rule().is_some_and(|rule| rule.needs_gold()),
        }
    }

    /// Whether a gold answer can be compared with anything.
    ///
    /// # Errors
    /// When it is missing, empty, too large or malformed.
    pub fn check_gold(&self, gold: Option<&str>) -> Result<(), GoldError> {
        if gold.is_none() && self.needs_gold() {
            return Err(GoldError::Missing);
        }
        let gold = gold.unwrap_or_default();
        match self {
            Self::Exec(_) | Self::Judge(_) => {
                if self.needs_gold() && gold.trim().is_empty() {
                    return Err(GoldError::Empty);
                }
                Ok(())
            }
            Self::All(several) | Self::Any(several) => {
                let parts = several.of.iter().map(|part| part.check_gold(Some(gold)));
                let failures: Vec<GoldError> = parts.filter_map(Result::err).collect();
                let is_any = matches!(self, Self::Any(_));
                // One that cannot judge spoils `all`; `any` needs one that can.
                match failures.first() {
                    Some(first) if !is_any || failures.len() == several.of.len() => {
                        Err(GoldError::NoVerifier(first.to_string()))
                    }
                    _ => Ok(()),
                }
            }
            rule => rule.rule().map_or(Ok(()), |rule| rule.check_gold(gold)),
        }
    }

    /// Whether it is several verifiers together.
    #[must_use]
    pub fn is_combined(&self) -> bool {
        matches!(self, Self::All(_) | Self::Any(_))
    }

    /// Whether there is something to agree: several verifiers, or several votes of a judge.
    #[must_use]
    pub fn has_agreement(&self) -> bool {
        self.is_combined() || matches!(self, Self::Judge(options) if options.votes > 1)
    }

    /// Whether the question counts, not only the answer: for programs and judges.
    #[must_use]
    pub fn reads_question(&self) -> bool {
        !self.is_rule()
    }

    /// Whether a judge in it has no server: it is a model that is loaded.
    #[must_use]
    pub fn needs_model(&self) -> bool {
        let mut needs = false;
        self.each(&mut Vec::new(), &mut |part, _| {
            needs |= matches!(part, Self::Judge(options) if options.endpoint.is_none());
        });
        needs
    }

    /// The judge that is a loaded model, if there is one.
    #[must_use]
    pub fn local_judge(&self) -> Option<&JudgeOptions> {
        match self {
            Self::Judge(options) if options.endpoint.is_none() => Some(options),
            Self::All(several) | Self::Any(several) => {
                several.of.iter().find_map(Self::local_judge)
            }
            _ => None,
        }
    }

    /// Visits this verifier and those in it, each with the keys that lead to it.
    fn each(&self, path: &mut Vec<String>, visit: &mut dyn FnMut(&Self, &[String])) {
        visit(self, path);
        let (key, several) = match self {
            Self::All(several) => ("all", several),
            Self::Any(several) => ("any", several),
            _ => return,
        };
        let depth = path.len();
        for (index, part) in several.of.iter().enumerate() {
            path.extend([key.to_owned(), "of".to_owned(), index.to_string()]);
            part.each(path, visit);
            path.truncate(depth);
        }
    }

    /// Every value that cannot be right. `at` is the path of keys to this configuration.
    #[must_use]
    pub fn faults(&self, at: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut locals: Vec<(Vec<String>, String)> = Vec::new();
        self.each(&mut owned(at), &mut |part, path| match part {
            Self::Exec(options) => {
                faults.extend(options.faults().into_iter().map(|f| under(path, "exec", f)));
            }
            Self::Judge(options) => {
                let found = options.faults().into_iter();
                faults.extend(found.map(|f| under(path, "judge", f)));
                if options.endpoint.is_none() {
                    locals.push((path.to_vec(), format!("{:?}", options.loading())));
                }
            }
            Self::All(several) | Self::Any(several) if several.of.is_empty() => {
                let key = if matches!(part, Self::All(_)) {
                    "all"
                } else {
                    "any"
                };
                let message = format!("`{key}` has no verifier");
                let fault = Fault::at("wrong-value", "of", message)
                    .with_help("list what must agree, such as `of: [{ math: {} }, { exact: {} }]`");
                faults.push(under(path, key, fault));
            }
            rule => faults.extend(rule.rule_faults(path)),
        });
        // There is one port for a model, and one model on it.
        for (path, loading) in locals.iter().skip(1) {
            if *loading != locals[0].1 {
                let fault = Fault::new(
                    "wrong-value",
                    "several judges share the model on the port `judge` and say differently how it is loaded and sampled",
                )
                .with_help("give them the same `temperature`, `max-new-tokens`, `precision` and `max-concurrent`");
                faults.push(under(path, "judge", fault));
            }
        }
        faults
    }

    /// Values of a rule that cannot be right. `path` leads to it.
    fn rule_faults(&self, path: &[String]) -> Vec<Fault> {
        let wrong = |key: &str, message: String| Fault::at("wrong-value", key, message);
        match self {
            Self::Regex(options) => {
                // Gold answers stand in a pattern as they are, so that any of them shows whether it can be read.
                let checked = self.check_gold(Some("0"));
                let Err(GoldError::Pattern(error)) = checked else {
                    return Vec::new();
                };
                // What stands before it shows the pattern over several lines.
                let error = error.rsplit("error: ").next().unwrap_or_default();
                let message = format!("`{}` is no regular expression: {error}", options.pattern);
                let fault = wrong("pattern", message)
                    .with_help("write `\\` before a sign that stands for itself, such as `\\(`");
                vec![under(path, "regex", fault)]
            }
            Self::Numeric(options) => {
                let both = [
                    ("absolute", options.absolute),
                    ("relative", options.relative),
                ];
                let both = both
                    .into_iter()
                    .filter(|(_, value)| value.is_nan() || *value < 0.0);
                both.map(|(key, value)| {
                    let message = format!("`{key}` is {value} and must be at least 0");
                    under(path, "numeric", wrong(key, message))
                })
                .collect()
            }
            Self::Choice(options) => {
                let is_empty = |letters: &String| {
                    !letters.contains(|letter: char| letter.is_ascii_alphabetic())
                };
                if !options.letters.as_ref().is_some_and(is_empty) {
                    return Vec::new();
                }
                let fault = wrong("letters", "`letters` has no letter".to_owned()).with_help(
                    "write the letters of all choices, such as `letters: ABCD`, or leave it out",
                );
                vec![under(path, "choice", fault)]
            }
            Self::Format(options) if options.tags.iter().all(|tag| tag.trim().is_empty()) => {
                let fault = wrong("tags", "`tags` names no tag".to_owned())
                    .with_help("name the tags in their order, such as `tags: [think, answer]`");
                vec![under(path, "format", fault)]
            }
            _ => Vec::new(),
        }
    }

    /// Files that programs are made of. `at` is the path of keys to this configuration.
    #[must_use]
    pub fn externals(&self, at: &[&str]) -> Vec<External> {
        let mut externals = Vec::new();
        self.each(&mut owned(at), &mut |part, path| {
            if let Self::Exec(options) = part {
                let mut path = path.to_vec();
                path.push("exec".to_owned());
                let found = program::externals(&path, &options.command, &options.files);
                externals.extend(found);
            }
        });
        externals
    }

    /// Looks at the files that programs are made of. `at` is the path of keys to this configuration.
    #[must_use]
    pub fn inspect(&self, root: &Path, at: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.each(&mut owned(at), &mut |part, path| {
            if let Self::Exec(options) = part {
                let found = program::inspect(root, &options.command, &options.files);
                faults.extend(found.into_iter().map(|fault| under(path, "exec", fault)));
            }
        });
        faults
    }

    /// Takes what changes no verdict out of a configuration as JSON: how servers are reached, how many programs run.
    pub fn retain_content(config: &mut Value) {
        let Some((kind, options)) = config.as_object_mut().and_then(|map| map.iter_mut().next())
        else {
            return;
        };
        match kind.as_str() {
            "exec" => {
                if let Some(options) = options.as_object_mut() {
                    options.retain(|key, _| key != "workers");
                }
            }
            "judge" => {
                if let Some(endpoint) = options.get_mut("endpoint") {
                    Endpoint::retain_content(endpoint);
                }
                if let Some(options) = options.as_object_mut() {
                    options.retain(|key, _| key != "max-concurrent");
                }
            }
            "all" | "any" => {
                let parts = options.get_mut("of").and_then(Value::as_array_mut);
                parts.into_iter().flatten().for_each(Self::retain_content);
            }
            _ => {}
        }
    }
}

fn owned(path: &[&str]) -> Vec<String> {
    path.iter().map(|key| (*key).to_owned()).collect()
}

/// A fault of a verifier's options, as one of the whole configuration.
fn under(path: &[String], kind: &str, fault: Fault) -> Fault {
    let mut keys = path.to_vec();
    keys.push(kind.to_owned());
    keys.extend(fault.path);
    Fault {
        path: keys,
        ..fault
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
