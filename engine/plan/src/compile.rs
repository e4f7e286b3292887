//! The way from a document to a plan: read, look operators up, order, type every edge.

use std::sync::Arc;

use engine_core::operator::Family;
use engine_core::seed::derive;
use engine_core::{Fault, OperatorConfig, OperatorEntry, Ports, Registry};
use schemas::pipeline::{self, ENVELOPE, Pipeline, PlainStage, Reading, StageEntry, Word};
use schemas::problem::{drop_known, hint, nearest};
use schemas::yaml::Document;
use schemas::{Problem, Span};

use crate::graph;
use crate::plan::{Plan, Source, Stage};
use crate::wiring::Wiring;

/// A stage with what is known of it so far.
pub(crate) struct Draft<'a> {
    pub(crate) entry: &'a StageEntry,
    /// Present when the kind is known and its configuration is right.
    pub(crate) operator: Option<Operator<'a>>,
}

/// An operator with its configuration.
pub(crate) struct Operator<'a> {
    pub(crate) entry: &'a OperatorEntry,
    pub(crate) span: Span,
    pub(crate) config: Arc<dyn OperatorConfig>,
    pub(crate) canonical: serde_json::Value,
    pub(crate) ports: Ports,
}

/// Checks a pipeline file against the known operators.
///
/// # Errors
/// Every problem found, in the order of the text.
pub fn plan(document: &Document, registry: &Registry) -> Result<Plan, Vec<Problem>> {
    let Reading {
        pipeline,
        document,
        mut problems,
    } = pipeline::read(document);
    let mut drafts: Vec<Draft<'_>> = Vec::with_capacity(pipeline.stages.len());
    for entry in &pipeline.stages {
        let before = problems.len();
        let operator = operator(entry, &document, registry, &mut problems);
        if entry.is_copy {
            drop_known(&mut problems, before);
        }
        drafts.push(Draft { entry, operator });
    }
    let order = graph::order(&drafts, &mut problems);

    let mut wiring = Wiring::new(&drafts, &order, &document);
    for index in &order {
        let before = problems.len();
        wiring.connect(*index, &mut problems);
        if drafts[*index].entry.is_copy {
            drop_known(&mut problems, before);
        }
    }
    let wired = wiring.finish();
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.span);
        return Err(problems);
    }

    let stages = order.into_iter().zip(wired).map(|(index, wired)| {
        let Draft { entry, operator } = &drafts[index];
        let operator = operator
            .as_ref()
            .expect("a stage without operator is a problem");
        let wired = wired.expect("a stage that could not be typed is a problem");
        Stage {
            name: entry.name.clone(),
            kind: operator.entry.kind,
            version: operator.entry.version,
            family: operator.entry.family,
            placement: (operator.config.placement()).unwrap_or(operator.entry.placement),
            uses_seed: operator.entry.uses_seed,
            seed: match entry.seed {
                Some(seed) => seed,
                None if operator.entry.uses_seed => round_seed(pipeline.seed, &entry.rounds),
                None => pipeline.seed,
            },
            externals: operator.config.externals(),
            config: Arc::clone(&operator.config),
            canonical: operator.canonical.clone(),
            key_config: wired.key_config,
            inputs: wired.inputs,
            quarantine: entry.quarantine,
            outputs: wired.outputs,
            span: entry.span,
        }
    });
    let stages: Vec<Stage> = stages.collect();
    Ok(Plan {
        resolved: resolved(&pipeline, &document, &stages),
        stages,
        name: pipeline.name.clone(),
        seed: pipeline.seed,
        text: document.text.clone(),
        document: Arc::new(document),
    })
}

/// The seed of a stage in some round of a loop, where it sets none: another one in each round, so that rounds draw
/// differently. The first round is as if there were no loop.
fn round_seed(seed: u64, rounds: &[u32]) -> u64 {
    let mut seed = seed;
    for (level, round) in rounds.iter().enumerate().filter(|(_, round)| **round > 1) {
        // Short enough to be read and copied.
        seed = derive(seed, &format!("round {round} of loop {level}")) >> 32;
    }
    seed
}

fn resolved(pipeline: &Pipeline, document: &Document, stages: &[Stage]) -> String {
    let source = |source: &Source| {
        let producer = &stages[source.stage];
        match producer.outputs.first() {
            Some((first, _)) if *first == source.port => producer.name.clone(),
            _ => format!("{}.{}", producer.name, source.port),
        }
    };
    let plain: Vec<PlainStage<'_>> = stages
        .iter()
        .map(|stage| PlainStage {
            name: &stage.name,
            kind: stage.kind,
            inputs: stage
                .inputs
                .iter()
                .map(|(port, sources)| (port.as_str(), sources.iter().map(source).collect()))
                .collect(),
            seed: (stage.uses_seed && stage.seed != pipeline.seed).then_some(stage.seed),
            quarantine: stage.quarantine,
        })
        .collect();
    pipeline::resolved(document, &pipeline.name, pipeline.seed, &plain)
}

/// A fault of a stage's configuration as a problem at its place.
#[must_use]
pub fn locate(document: &Document, stage: &str, kind: &str, fault: Fault) -> Problem {
    let path: Vec<&str> = ["stages", stage, kind]
        .into_iter()
        .chain(fault.path.iter().map(String::as_str))
        .collect();
    let message = format!("stage `{stage}`: {}", fault.message);
    let mut problem = Problem::new(fault.code, message, document.nearest_span(&path));
    problem.help = fault.help;
    problem
}

fn operator<'a>(
    entry: &StageEntry,
    document: &Document,
    registry: &'a Registry,
    problems: &mut Vec<Problem>,
) -> Option<Operator<'a>> {
    let word = operator_word(entry, registry, problems)?;
    let Some(found) = registry.get(&word.text) else {
        let mut kinds: Vec<&str> = registry.entries().map(|entry| entry.kind).collect();
        // A mistyped `inputs` beside nothing else looks like an operator.
        let mut noun = "operators";
        if nearest(&word.text, &ENVELOPE).is_some() && nearest(&word.text, &kinds).is_none() {
            kinds = ENVELOPE.to_vec();
            noun = "keys of a stage";
        }
        problems.push(
            Problem::new(
                "unknown-operator",
                format!("there is no operator `{}`", word.text),
                word.span,
            )
            .with_label("unknown operator")
            .with_help(hint(&word.text, &kinds, noun)),
        );
        return None;
    };
    if entry.seed.is_some() && !found.uses_seed {
        let span = document.nearest_span(&["stages", &entry.name, "seed"]);
        problems.push(
            Problem::new(
                "unused-seed",
                format!(
                    "`{}` draws nothing at random, so its seed has no effect",
                    found.kind
                ),
                span,
            )
            .with_label("unused")
            .with_help("remove it"),
        );
    }
    if let Some(budget) = &entry.quarantine_span
        && found.family != Family::Map
    {
        problems.push(
            Problem::new(
                "wrong-key",
                format!(
                    "`{}` does not work row by row, so it has no rows to put in quarantine",
                    found.kind
                ),
                *budget,
            )
            .with_label("not for this operator")
            .with_help(format!(
                "remove it; operators with a quarantine: {}",
                listed_maps(registry)
            )),
        );
    }
    match (found.parse)(document, &["stages", &entry.name, &word.text]) {
        Ok(parsed) => {
            let config: Arc<dyn OperatorConfig> = parsed.config.into();
            Some(Operator {
                entry: found,
                span: word.span,
                ports: config.ports(),
                config,
                canonical: parsed.canonical,
            })
        }
        Err(found) => {
            problems.extend(found);
            None
        }
    }
}

fn listed_maps(registry: &Registry) -> String {
    let maps = registry
        .entries()
        .filter(|entry| entry.family == Family::Map);
    let kinds: Vec<&str> = maps.map(|entry| entry.kind).collect();
    schemas::problem::listed(&kinds)
}

/// The key that names the operator. With several candidates, the one that is known.
fn operator_word<'a>(
    entry: &'a StageEntry,
    registry: &Registry,
    problems: &mut Vec<Problem>,
) -> Option<&'a Word> {
    let kinds: Vec<&str> = registry.entries().map(|entry| entry.kind).collect();
    let known: Vec<&Word> = entry
        .operators
        .iter()
        .filter(|word| registry.get(&word.text).is_some())
        .collect();
    match (entry.operators.as_slice(), known.as_slice()) {
        // A stage that is no mapping was reported when it was read.
        ([], _) if !entry.inputs_are_known => None,
        ([], _) => {
            problems.push(
                Problem::new(
                    "missing-operator",
                    format!("stage `{}` has no operator", entry.name),
                    entry.span,
                )
                .with_label("no operator")
                .with_help(format!(
                    "the operators are {}",
                    schemas::problem::listed(&kinds)
                )),
            );
            None
        }
        ([word], _) => Some(word),
        (_, [operator]) => {
            for word in entry.operators.iter().filter(|word| *word != *operator) {
                problems.push(
                    Problem::new(
                        "unknown-key",
                        format!("stage `{}` has no key `{}`", entry.name, word.text),
                        word.span,
                    )
                    .with_label("unknown key")
                    .with_other(operator.span, "the operator, whose options go under it")
                    .with_help(hint(&word.text, &ENVELOPE, "keys")),
                );
            }
            Some(operator)
        }
        (words, _) => {
            let second = if known.len() > 1 { known[1] } else { &words[1] };
            problems.push(
                Problem::new(
                    "several-operators",
                    format!(
                        "stage `{}` has {} operators, and takes one",
                        entry.name,
                        words.len()
                    ),
                    second.span,
                )
                .with_label("second")
                .with_help("give each operator a stage of its own"),
            );
            None
        }
    }
}
