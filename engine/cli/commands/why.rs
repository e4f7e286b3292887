//! `why`: why a stage was cached or ran, or would be, down to the first field of its key that differs.

use engine_plan::Plan;
use engine_runtime::{Assessment, Reason, Selection, StageState, assess};
use engine_store::{Manifest, Run, Store};
use schemas::record::{StageRecord, StageStatus};
use serde_json::{Value, json};

use super::check::load;
use super::difference::Difference;
use super::plan::explain;
use super::print_json;
use crate::args::{PipelineArgs, WhyArgs};
use crate::exit::{Exit, wrong};
use crate::project::{find_store, open_store, project_folder};
use crate::select::{Runs, names, record_of};

/// Earlier manifests that are compared with.
const MANIFESTS: usize = 10_000;

pub(crate) fn why(arguments: &WhyArgs) -> anyhow::Result<Exit> {
    let (store, answer) = match &arguments.file {
        Some(file) => {
            let pipeline = PipelineArgs {
                file: file.clone(),
                changes: arguments.changes.clone(),
            };
            let root = project_folder(file);
            let Some(plan) = load(&pipeline, &root)? else {
                return Ok(Exit::Wrong);
            };
            let store = open_store(&arguments.store, &root)?;
            let answer = Answer::of_plan(&plan, &store, &root, &arguments.stage)?;
            (store, answer)
        }
        None if !arguments.changes.is_empty() => {
            return Err(wrong(
                "--overlay and --set change a pipeline file: name it after the stage",
            ));
        }
        None => {
            let store = find_store(&arguments.store)?;
            let answer = Answer::of_run(&store, &arguments.stage)?;
            (store, answer)
        }
    };
    let earlier = answer.earlier(&store)?;
    if arguments.json {
        print_json(&answer.json(earlier.as_ref()))?;
    } else {
        answer.print(earlier.as_ref());
    }
    Ok(Exit::Done)
}

/// What is known of a stage.
struct Answer {
    stage: String,
    kind: String,
    pipeline: String,
    /// `cached`, `done` and so on as in a run, or `to-run`.
    state: &'static str,
    /// Why it has no result, if it has none.
    reason: Option<String>,
    /// The run that is explained; none for a plan.
    run: Option<String>,
    /// The run that made the result.
    made_by: Option<String>,
    key: Option<String>,
    material: Option<Value>,
    inputs: Vec<Input>,
    runs: Vec<Run>,
}

struct Input {
    port: String,
    digest: String,
    /// Output ports that it comes from, as `stage.port`.
    from: Vec<String>,
}

/// A result to compare with.
struct Earlier {
    manifest: Manifest,
    difference: Option<Difference>,
}

impl Answer {
    fn of_plan(
        plan: &Plan,
        store: &Store,
        root: &std::path::Path,
        name: &str,
    ) -> anyhow::Result<Self> {
        let index = plan.index_of(name).ok_or_else(|| {
            let names: Vec<&str> = plan
                .stages
                .iter()
                .map(|stage| stage.name.as_str())
                .collect();
            wrong(format!(
                "pipeline `{}` has no stage `{name}`; its stages are {}",
                plan.name,
                names.join(", ")
            ))
        })?;
        let stage = &plan.stages[index];
        let Assessment { key, state } =
            assess(plan, store, root, &Selection::default())?.swap_remove(index);
        let (state, reason) = match &state {
            StageState::Cached(_) | StageState::Pinned { .. } => ("cached", None),
            // What differs is said with both values.
            StageState::ToRun(Reason::Differs { .. }) => ("to-run", None),
            StageState::ToRun(reason) | StageState::NotSelected(reason) => {
                ("to-run", Some(explain(reason)))
            }
        };
        let material = key.as_ref().map(|key| key.material.clone());
        let inputs = inputs_of(material.as_ref(), |port, place, _| {
            let source = stage
                .inputs
                .get(port)
                .and_then(|sources| sources.get(place));
            source
                .map(|source| format!("{}.{}", plan.stages[source.stage].name, source.port))
                .into_iter()
                .collect()
        });
        let key = key.map(|key| key.digest.to_string());
        let runs = store.runs()?;
        Ok(Self {
            stage: stage.name.clone(),
            kind: stage.kind.to_owned(),
            pipeline: plan.name.clone(),
            state,
            reason,
            run: None,
            made_by: key.as_deref().and_then(|key| made_by(&runs, key)),
            key,
            material,
            inputs,
            runs,
        })
    }

    /// `stage` of the latest run, or `stage@run`.
    fn of_run(store: &Store, text: &str) -> anyhow::Result<Self> {
        let read = Runs::open(store)?;
        let (name, run) = match text.rsplit_once('@') {
            Some((name, word)) => (name, read.run(word)?),
            None => (text, read.latest()?),
        };
        let record = record_of(run, name).ok_or_else(|| {
            wrong(format!(
                "run {} has no record of a stage `{name}`; its stages are {}",
                run.started.run,
                names(run)
            ))
        })?;
        let runs = store.runs()?;
        let material = match &record.key {
            Some(key) => store.find_manifest(key)?.map(|manifest| manifest.material),
            None => None,
        };
        let inputs = inputs_of(material.as_ref(), |_, _, digest| makers(run, digest));
        Ok(Self {
            stage: record.stage.clone(),
            kind: record.kind.clone(),
            pipeline: run.started.pipeline.clone(),
            state: record.status.as_str(),
            reason: reason(record, material.is_some()),
            run: Some(run.started.run.clone()),
            made_by: record.key.as_deref().and_then(|key| made_by(&runs, key)),
            key: record.key.clone(),
            material,
            inputs,
            runs,
        })
    }

    /// The nearest earlier result of the operator: the latest one of the same stage, else the latest of the same kind.
    fn earlier(&self, store: &Store) -> anyhow::Result<Option<Earlier>> {
        let (Some(key), Some(material)) = (&self.key, &self.material) else {
            return Ok(None);
        };
        let manifests = store.recent_manifests(MANIFESTS)?;
        let ours = manifests
            .iter()
            .find(|manifest| manifest.key.as_str() == key);
        // Both are times in UTC of one form, so that they compare as text.
        let candidates: Vec<&Manifest> = manifests
            .iter()
            .filter(|manifest| manifest.kind == self.kind && manifest.key.as_str() != key)
            .filter(|manifest| ours.is_none_or(|ours| manifest.created < ours.created))
            .collect();
        let same_stage = self
            .runs
            .iter()
            .rev()
            .filter(|run| run.started.pipeline == self.pipeline)
            .flat_map(|run| &run.stages)
            .filter(|record| record.stage == self.stage && record.kind == self.kind)
            .filter_map(|record| record.key.as_deref())
            .find_map(|key| {
                let mut candidates = candidates.iter();
                candidates.find(|manifest| manifest.key.as_str() == key)
            });
        let latest = || {
            let candidates = candidates.iter();
            candidates.max_by(|left, right| left.created.cmp(&right.created))
        };
        Ok(same_stage.or_else(latest).map(|manifest| Earlier {
            difference: Difference::between(&manifest.material, material),
            manifest: (*manifest).clone(),
        }))
    }

    fn json(&self, earlier: Option<&Earlier>) -> Value {
        let inputs: Vec<Value> = self
            .inputs
            .iter()
            .map(|input| json!({ "port": input.port, "digest": input.digest, "from": input.from }))
            .collect();
        let earlier = earlier.map(|earlier| {
            let difference = earlier.difference.as_ref();
            json!({
                "key": earlier.manifest.key,
                "created": earlier.manifest.created,
                "made_by_run": made_by(&self.runs, earlier.manifest.key.as_str()),
                "differs": difference.map(|difference| &difference.field),
                "before": difference.and_then(|difference| difference.before.as_ref()),
                "now": difference.and_then(|difference| difference.now.as_ref()),
            })
        });
        json!({
            "stage": self.stage,
            "operator": self.kind,
            "pipeline": self.pipeline,
            "run": self.run,
            "state": self.state,
            "reason": self.reason,
            "key": self.key,
            "made_by_run": self.made_by,
            "inputs": inputs,
            "earlier": earlier,
        })
    }

    fn print(&self, earlier: Option<&Earlier>) {
        let place = match &self.run {
            Some(run) => format!("run {run}"),
            None => format!("pipeline `{}`", self.pipeline),
        };
        println!(
            "stage `{}` ({}) of {place}: {}",
            self.stage, self.kind, self.state
        );
        println!("key       {}", self.key.as_deref().unwrap_or("not known"));
        if let Some(run) = &self.made_by {
            println!("made by   run {run}");
        }
        for (index, input) in self.inputs.iter().enumerate() {
            let title = if index == 0 { "inputs" } else { "" };
            println!(
                "{title:<9} {} {} from {}",
                input.port,
                &input.digest[..12.min(input.digest.len())],
                input.from.join(" or ")
            );
        }
        if let Some(reason) = &self.reason {
            println!("why       {reason}");
        }
        let Some(earlier) = earlier else {
            if self.material.is_some() {
                println!("earlier   there is no earlier result of `{}`", self.kind);
            }
            return;
        };
        let manifest = &earlier.manifest;
        println!("earlier   {} of {}", manifest.key.short(), manifest.created);
        if let Some(difference) = &earlier.difference {
            println!("differs   {}", difference.field);
            let [before, now] = difference.values();
            println!("  before  {before}\n  now     {now}");
        }
    }
}

/// Why a stage of a run has no result to explain.
fn reason(record: &StageRecord, has_result: bool) -> Option<String> {
    match (&record.error, record.status) {
        (Some(error), _) => Some(error.clone()),
        (None, StageStatus::Skipped) => {
            Some("a stage before it failed or the run was interrupted".to_owned())
        }
        (None, StageStatus::Interrupted) => Some("the run was interrupted".to_owned()),
        _ if !has_result => Some("its result is not in the store any more".to_owned()),
        _ => None,
    }
}

/// The inputs that a key covers. `from` says where one comes from, by port, place on the port and digest.
fn inputs_of(
    material: Option<&Value>,
    from: impl Fn(&str, usize, &str) -> Vec<String>,
) -> Vec<Input> {
    let ports = material.and_then(|material| material["inputs"].as_object());
    let mut inputs = Vec::new();
    for (port, digests) in ports.into_iter().flatten() {
        let digests = digests.as_array().into_iter().flatten();
        for (place, digest) in digests.filter_map(Value::as_str).enumerate() {
            inputs.push(Input {
                port: port.clone(),
                digest: digest.to_owned(),
                from: from(port, place, digest),
            });
        }
    }
    inputs
}

/// Output ports of a run that hold this artifact.
fn makers(run: &Run, digest: &str) -> Vec<String> {
    let outputs = run.stages.iter().flat_map(|record| {
        let ports = record.outputs.iter();
        ports.map(move |(port, found)| (&record.stage, port, found))
    });
    outputs
        .filter(|(_, _, found)| *found == digest)
        .map(|(stage, port, _)| format!("{stage}.{port}"))
        .collect()
}

/// The run that did the work.
fn made_by(runs: &[Run], key: &str) -> Option<String> {
    let is_maker = |run: &&Run| {
        run.stages
            .iter()
            .any(|record| record.status == StageStatus::Done && record.key.as_deref() == Some(key))
    };
    runs.iter()
        .find(is_maker)
        .map(|run| run.started.run.clone())
}
