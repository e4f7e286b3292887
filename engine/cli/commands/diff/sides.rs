//! What is compared: two runs, or the results of two stages.

use engine_core::{Artifact, Dataset};
use engine_store::{Manifest, Run, Store};
use schemas::record::StageRecord;

use crate::exit::wrong;
use crate::select::{Runs, StageOf, Target, record_of, result_of};

/// Manifests that are searched around a result that is of no run.
const MANIFESTS: usize = 10_000;

pub(super) enum Sides<'a> {
    Runs(&'a Run, &'a Run),
    Results(Box<Pair<'a>>),
}

/// Two results.
pub(super) struct Pair<'a> {
    pub(super) a: Side<'a>,
    pub(super) b: Side<'a>,
}

/// A result and where it is from.
pub(super) struct Side<'a> {
    pub(super) run: Option<&'a Run>,
    pub(super) stage: String,
    /// The one port that was asked for.
    pub(super) port: Option<String>,
    pub(super) manifest: Manifest,
}

/// Reads both words. A run beside a stage stands for the same stage of that run.
pub(super) fn read<'a>(runs: &'a Runs<'_>, a: &'a str, b: &'a str) -> anyhow::Result<Sides<'a>> {
    let store = runs.store();
    let pair = |a, b| Ok(Sides::Results(Box::new(Pair { a, b })));
    match (runs.target(a)?, runs.target(b)?) {
        (Target::Run(a), Target::Run(b)) => Ok(Sides::Runs(a, b)),
        (Target::Run(run), Target::Stage(stage)) => {
            let same = same_stage(run, &stage)?;
            pair(Side::of_stage(store, same)?, Side::of_stage(store, stage)?)
        }
        (Target::Stage(stage), Target::Run(run)) => {
            let same = same_stage(run, &stage)?;
            pair(Side::of_stage(store, stage)?, Side::of_stage(store, same)?)
        }
        (Target::Stage(a), Target::Stage(b)) => {
            pair(Side::of_stage(store, a)?, Side::of_stage(store, b)?)
        }
        (Target::Run(_), Target::Result(_)) | (Target::Result(_), Target::Run(_)) => Err(wrong(
            "a run cannot be compared with one result; name two runs or two stages",
        )),
        (Target::Stage(a), Target::Result(b)) => {
            pair(Side::of_stage(store, a)?, Side::of_result(*b))
        }
        (Target::Result(a), Target::Stage(b)) => {
            pair(Side::of_result(*a), Side::of_stage(store, b)?)
        }
        (Target::Result(a), Target::Result(b)) => pair(Side::of_result(*a), Side::of_result(*b)),
    }
}

fn same_stage<'a>(run: &'a Run, stage: &StageOf<'a>) -> anyhow::Result<StageOf<'a>> {
    let name = &stage.record.stage;
    let record = record_of(run, name).ok_or_else(|| {
        wrong(format!(
            "run {} has no record of stage `{name}`",
            run.started.run
        ))
    })?;
    Ok(StageOf {
        run,
        record,
        port: stage.port,
    })
}

impl<'a> Side<'a> {
    fn of_stage(store: &Store, stage: StageOf<'a>) -> anyhow::Result<Self> {
        let manifest = result_of(store, stage.record)?.ok_or_else(|| {
            wrong(format!(
                "stage `{}` has no result in run {}: it is {}",
                stage.record.stage,
                stage.run.started.run,
                stage.record.status.as_str()
            ))
        })?;
        if let Some(port) = stage.port {
            // Says which ports there are.
            crate::select::artifact(&stage.record.stage, &manifest, Some(port))?;
        }
        Ok(Self {
            run: Some(stage.run),
            stage: stage.record.stage.clone(),
            port: stage.port.map(str::to_owned),
            manifest,
        })
    }

    fn of_result(manifest: Manifest) -> Self {
        Self {
            run: None,
            stage: format!("{} {}", manifest.kind, manifest.key.short()),
            port: None,
            manifest,
        }
    }

    /// The artifacts that are compared.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (&String, &Artifact)> {
        let port = self.port.as_ref();
        let outputs = self.manifest.outputs.iter();
        outputs.filter(move |(name, _)| port.is_none_or(|port| port == *name))
    }

    pub(super) fn datasets(&self) -> impl Iterator<Item = &Dataset> {
        self.outputs().filter_map(|(_, artifact)| dataset(artifact))
    }

    /// All results that may be connected with this one: those of its run.
    pub(super) fn neighbours(&self, store: &Store) -> anyhow::Result<Vec<Manifest>> {
        let Some(run) = self.run else {
            return Ok(store.recent_manifests(MANIFESTS)?);
        };
        let has_outputs = |record: &&StageRecord| !record.outputs.is_empty();
        let records = run.stages.iter().filter(has_outputs);
        let results = records.map(|record| result_of(store, record));
        results.filter_map(Result::transpose).collect()
    }
}

impl<'a> Pair<'a> {
    /// The results of one stage in two runs; none unless both have one.
    pub(super) fn of_runs(
        store: &Store,
        a: &'a Run,
        b: &'a Run,
        stage: &str,
    ) -> anyhow::Result<Option<Self>> {
        let side = |run: &'a Run| -> anyhow::Result<Option<Side<'a>>> {
            let Some(record) = record_of(run, stage) else {
                return Ok(None);
            };
            Ok(result_of(store, record)?.map(|manifest| Side {
                run: Some(run),
                stage: stage.to_owned(),
                port: None,
                manifest,
            }))
        };
        Ok(match (side(a)?, side(b)?) {
            (Some(a), Some(b)) => Some(Self { a, b }),
            _ => None,
        })
    }

    /// Artifacts to compare, by port: of equal names, else the only two.
    pub(super) fn artifacts(&self) -> Vec<(String, &Artifact, &Artifact)> {
        let a: Vec<_> = self.a.outputs().collect();
        let b: Vec<_> = self.b.outputs().collect();
        if let ([(port, a)], [(other, b)]) = (a.as_slice(), b.as_slice()) {
            let name = if port == other {
                (*port).clone()
            } else {
                format!("{port}, {other}")
            };
            return vec![(name, a, b)];
        }
        a.into_iter()
            .filter_map(|(port, a)| {
                let (_, b) = b.iter().find(|(other, _)| *other == port)?;
                Some((port.clone(), a, *b))
            })
            .collect()
    }
}

/// The table, if it is one.
pub(super) fn dataset(artifact: &Artifact) -> Option<&Dataset> {
    match artifact {
        Artifact::Dataset(dataset) => Some(dataset),
        Artifact::Model(_) => None,
    }
}
