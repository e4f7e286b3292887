//! The plain graph of stages as a pipeline file.

use std::collections::HashMap;

use super::QuarantineBudget;
use crate::yaml::{Document, Entry, Writer};

/// A stage of the plain graph.
#[derive(Clone, Debug)]
pub struct PlainStage<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its operator.
    pub kind: &'a str,
    /// What each input port reads.
    pub inputs: Vec<(&'a str, Vec<String>)>,
    /// Its seed, if it is not the pipeline's.
    pub seed: Option<u64>,
    /// How many rows may fail.
    pub quarantine: Option<QuarantineBudget>,
}

/// The text of a pipeline file with these stages and nothing to be worked in. Their configurations come from the document
/// that was read.
#[must_use]
pub fn resolved(document: &Document, name: &str, seed: u64, stages: &[PlainStage<'_>]) -> String {
    let entries = document
        .root()
        .and_then(|root| root.entry("stages"))
        .and_then(|stages| stages.value.entries())
        .unwrap_or_default();
    let written: HashMap<&str, &Entry> = entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry))
        .collect();
    let mut writer = Writer::default();
    writer.raw(0, "version", "1");
    writer.text(0, "name", name);
    writer.raw(0, "seed", &seed.to_string());
    writer.open(0, "stages");
    for stage in stages {
        writer.open(2, stage.name);
        if !stage.inputs.is_empty() {
            let inputs: Vec<String> = stage.inputs.iter().map(input).collect();
            writer.raw(4, "inputs", &format!("{{ {} }}", inputs.join(", ")));
        }
        if let Some(seed) = stage.seed {
            writer.raw(4, "seed", &seed.to_string());
        }
        match stage.quarantine {
            Some(QuarantineBudget::Rows(rows)) => {
                writer.raw(4, "quarantine", &format!("{{ rows: {rows} }}"));
            }
            Some(QuarantineBudget::Share(share)) => {
                writer.raw(4, "quarantine", &format!("{{ share: {share:?} }}"));
            }
            None => {}
        }
        let operator = written
            .get(stage.name)
            .and_then(|entry| entry.value.entry(stage.kind));
        if let Some(operator) = operator {
            writer.entry(4, operator);
        }
    }
    writer.finish()
}

fn input((port, sources): &(&str, Vec<String>)) -> String {
    let port = Writer::word(port);
    match sources.as_slice() {
        [source] => format!("{port}: {}", Writer::word(source)),
        sources => {
            let sources: Vec<String> = sources.iter().map(|source| Writer::word(source)).collect();
            format!("{port}: [{}]", sources.join(", "))
        }
    }
}
