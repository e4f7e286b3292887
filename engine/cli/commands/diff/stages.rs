//! Two runs, stage by stage.

use std::collections::HashSet;

use engine_store::{Run, Store};
use schemas::record::StageRecord;
use serde::Serialize;
use serde_json::Value;

use super::super::difference::Difference;
use crate::select::{record_of, result_of};

/// Stages that check answers and are shown row by row.
const DETAILED: usize = 20;

/// Two runs, stage by stage.
#[derive(Debug, Serialize)]
pub(super) struct StagesDiff {
    /// Stages with equal results.
    pub(super) equal: usize,
    /// The first stage that differs, in the order in which they run.
    pub(super) first: Option<String>,
    /// All stages that differ, in that order.
    pub(super) stages: Vec<StageDiff>,
}

/// A stage that differs.
#[derive(Debug, Serialize)]
pub(super) struct StageDiff {
    pub(super) stage: String,
    pub(super) operator: String,
    pub(super) what: What,
    /// The first field in which the keys differ.
    pub(super) differs: Option<Difference>,
    /// Stages that the differing input comes from.
    pub(super) from: Vec<String>,
    /// Whether the artifacts differ, and not only the keys.
    pub(super) outputs_differ: bool,
}

/// How a stage differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    OnlyA,
    OnlyB,
    /// The keys differ.
    Key,
    /// The keys are equal, and the artifacts are not.
    Result,
    /// One run or both have no result.
    Unfinished,
}

pub(super) fn compare(store: &Store, a: &Run, b: &Run) -> anyhow::Result<StagesDiff> {
    let mut found = StagesDiff {
        equal: 0,
        first: None,
        stages: Vec::new(),
    };
    let in_b: HashSet<&String> = b.started.stages.iter().collect();
    let only_a = a.started.stages.iter().filter(|name| !in_b.contains(name));
    for name in b.started.stages.iter().chain(only_a) {
        match (side(a, name), side(b, name)) {
            (Side::Record(left), Side::Record(right)) if are_equal(left, right) => {
                found.equal += 1;
            }
            (left, right) => found
                .stages
                .push(stage_diff(store, (a, b), name, left, right)?),
        }
    }
    // A stage that only one run has is no place where results part, unless nothing else differs.
    found.first = found
        .stages
        .iter()
        .find(|stage| !matches!(stage.what, What::OnlyA | What::OnlyB))
        .or(found.stages.first())
        .map(|stage| stage.stage.clone());
    Ok(found)
}

enum Side<'a> {
    /// The run has no such stage.
    Absent,
    /// It did not get there.
    Open,
    Record(&'a StageRecord),
}

fn side<'a>(run: &'a Run, name: &String) -> Side<'a> {
    match record_of(run, name) {
        Some(record) => Side::Record(record),
        None if run.started.stages.contains(name) => Side::Open,
        None => Side::Absent,
    }
}

fn are_equal(a: &StageRecord, b: &StageRecord) -> bool {
    a.key.is_some() && a.key == b.key && a.outputs == b.outputs && !a.outputs.is_empty()
}

fn stage_diff(
    store: &Store,
    (run_a, run_b): (&Run, &Run),
    name: &str,
    a: Side<'_>,
    b: Side<'_>,
) -> anyhow::Result<StageDiff> {
    let mut diff = StageDiff {
        stage: name.to_owned(),
        operator: String::new(),
        what: What::Unfinished,
        differs: None,
        from: Vec::new(),
        outputs_differ: true,
    };
    match (a, b) {
        (Side::Absent, Side::Record(record)) => {
            diff.what = What::OnlyB;
            diff.operator.clone_from(&record.kind);
        }
        (Side::Record(record), Side::Absent) => {
            diff.what = What::OnlyA;
            diff.operator.clone_from(&record.kind);
        }
        (Side::Absent, _) => diff.what = What::OnlyB,
        (_, Side::Absent) => diff.what = What::OnlyA,
        (Side::Record(a), Side::Record(b)) => {
            diff.operator.clone_from(&b.kind);
            if let (Some(before), Some(now)) = (result_of(store, a)?, result_of(store, b)?) {
                diff.differs = Difference::between(&before.material, &now.material);
                diff.outputs_differ = a.outputs != b.outputs;
                diff.what = if diff.differs.is_some() {
                    What::Key
                } else {
                    What::Result
                };
            }
        }
        (Side::Open, _) | (_, Side::Open) => {}
    }
    if let Some(difference) = diff.differs.as_ref().filter(|diff| diff.port().is_some()) {
        for (run, value) in [(run_a, &difference.before), (run_b, &difference.now)] {
            let digest = value.as_ref().and_then(Value::as_str);
            for maker in digest.into_iter().flat_map(|digest| makers(run, digest)) {
                if !diff.from.contains(maker) {
                    diff.from.push(maker.clone());
                }
            }
        }
    }
    Ok(diff)
}

/// Stages of a run with this artifact.
fn makers<'a>(run: &'a Run, digest: &'a str) -> impl Iterator<Item = &'a String> {
    let is_maker = move |record: &&StageRecord| record.outputs.values().any(|made| made == digest);
    run.stages
        .iter()
        .filter(is_maker)
        .map(|record| &record.stage)
}

impl StagesDiff {
    /// Stages that are worth a look at their rows: the first that differs, and those that check answers.
    pub(super) fn detailed(&self) -> Vec<&str> {
        let first = self.first.iter().map(String::as_str);
        let checked = self
            .stages
            .iter()
            .filter(|stage| stage.operator == "verify" && stage.outputs_differ)
            .map(|stage| stage.stage.as_str());
        let checked = checked
            .filter(|name| Some(*name) != self.first.as_deref())
            .take(DETAILED);
        first.chain(checked).collect()
    }
}
