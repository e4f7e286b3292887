//! How long stages took, and how long others like them will.

use std::collections::HashMap;

use engine_core::Artifact;
use engine_core::operator::Family;
use engine_plan::Stage;
use engine_runtime::{Assessment, StageState};
use engine_store::{Manifest, Store};
use schemas::record::PartCounts;
use serde_json::Value;

use crate::select::Runs;

/// Earlier results that are looked at.
const MANIFESTS: usize = 2_000;
/// Earlier runs in which the rows of a stage are looked up.
const RUNS: usize = 5;

/// Earlier results, with what is known of their size.
pub(super) struct History {
    manifests: Vec<Manifest>,
    /// Rows of tables and bytes of models by their digests.
    sizes: HashMap<String, Size>,
    /// Rows that a stage had when it last ended.
    rows: HashMap<String, u64>,
    /// Parts of stages that did not come to their end, by stage key.
    parts: HashMap<String, PartCounts>,
}

#[derive(Clone, Copy)]
enum Size {
    Rows(u64),
    Bytes(u64),
}

/// What is known of a stage that has not run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Forecast {
    /// How long it will take, if there is anything to tell by.
    pub(super) seconds: Option<f64>,
    /// Earlier results that this was taken from.
    pub(super) results: usize,
    /// Parts that a run left which did not come to the end of the stage.
    pub(super) parts: Option<PartCounts>,
    /// Step of the checkpoint that a training stage would go on from.
    pub(super) checkpoint: Option<u64>,
}

/// What a stage works on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Load {
    /// Rows of all input tables; none without inputs, or when they are not known.
    rows: Option<u64>,
    /// Bytes of all input models.
    bytes: u64,
}

impl History {
    pub(super) fn read(store: &Store) -> anyhow::Result<Self> {
        let manifests = store.recent_manifests(MANIFESTS)?;
        let mut sizes = HashMap::new();
        for artifact in manifests.iter().flat_map(|made| made.outputs.values()) {
            sizes.insert(artifact.digest().to_string(), size(artifact));
        }
        let (mut rows, mut parts) = (HashMap::new(), HashMap::new());
        for run in Runs::open(store)?.backwards().take(RUNS) {
            for record in &run?.stages {
                let left = record.parts.filter(|_| record.outputs.is_empty());
                if let (Some(left), Some(key)) = (left, &record.key) {
                    parts.entry(key.clone()).or_insert(left);
                }
                if let Some(number) = record.rows {
                    rows.entry(record.stage.clone()).or_insert(number);
                }
            }
        }
        Ok(Self {
            manifests,
            sizes,
            rows,
            parts,
        })
    }

    /// What is known of each stage that would run.
    pub(super) fn expect(
        &self,
        store: &Store,
        stages: &[Stage],
        assessments: &[Assessment],
    ) -> anyhow::Result<Vec<Forecast>> {
        let outputs: Vec<_> = assessments
            .iter()
            .map(|found| found.state.outputs())
            .collect();
        let load = |stage: &Stage| {
            let mut load = Load::default();
            for source in stage.inputs.values().flatten() {
                let made = outputs[source.stage].and_then(|outputs| outputs.get(&source.port));
                match made.map(size) {
                    Some(Size::Bytes(bytes)) => load.bytes += bytes,
                    Some(Size::Rows(rows)) => load.add(rows),
                    // Not made yet: as many rows as last time.
                    None => {
                        if let Some(rows) = self.rows.get(&stages[source.stage].name) {
                            load.add(*rows);
                        }
                    }
                }
            }
            load
        };
        let expected = stages.iter().zip(assessments).map(|(stage, found)| {
            if !matches!(found.state, StageState::ToRun(_)) {
                return Ok(Forecast::default());
            }
            let material = found.key.as_ref().map(|key| &key.material["config"]);
            let config = material.unwrap_or(&stage.key_config);
            let known = self.of_stage(stage.kind, stage.family, config, load(stage));
            let (mut parts, mut checkpoint, mut left) = (None, None, 1.0);
            if let Some(key) = &found.key {
                parts = self.parts.get(key.digest.as_str()).copied();
                if stage.family == Family::Train {
                    let found = store.latest_checkpoint(&key.digest)?;
                    checkpoint = found.map(|found| found.step);
                }
            }
            if let Some(parts) = parts {
                let done = parts.reused + parts.computed;
                left = 1.0 - done as f64 / parts.total.max(done).max(1) as f64;
            }
            if let (Some(step), Some(steps)) = (checkpoint, config["steps"].as_f64()) {
                left = (1.0 - step as f64 / steps.max(1.0)).max(0.0);
            }
            Ok(Forecast {
                seconds: known.map(|(seconds, _)| seconds * left),
                results: known.map_or(0, |(_, results)| results),
                parts,
                checkpoint,
            })
        });
        expected.collect()
    }

    /// How long a stage takes, and from how many results that is known: the median time for a unit of work in earlier results of the operator, times the units. Results of the same
    /// configuration count alone if there are any, else those with a model of the same size, else all.
    fn of_stage(
        &self,
        kind: &str,
        family: Family,
        config: &Value,
        load: Load,
    ) -> Option<(f64, usize)> {
        let of_kind: Vec<(&Manifest, Load)> = self
            .manifests
            .iter()
            .filter(|made| made.kind == kind && made.seconds.is_finite())
            .map(|made| (made, self.load_of(made)))
            .collect();
        let same_config = |(made, earlier): &&(&Manifest, Load)| {
            made.material["config"] == *config && (earlier.bytes == load.bytes || load.bytes == 0)
        };
        let same_model = |(_, earlier): &&(&Manifest, Load)| earlier.bytes == load.bytes;
        let tiers: [Vec<&(&Manifest, Load)>; 3] = [
            of_kind.iter().filter(same_config).collect(),
            of_kind.iter().filter(same_model).collect(),
            of_kind.iter().collect(),
        ];
        let earlier = tiers.into_iter().find(|tier| !tier.is_empty())?;
        let units = units(family, config, load);
        let mut rates: Vec<f64> = earlier
            .iter()
            .map(|(made, load)| {
                let done = self::units(family, &made.material["config"], *load);
                match (units, done) {
                    (Some(_), Some(done)) if done > 0.0 => made.seconds / done,
                    // Not comparable by size: as long as that one.
                    (Some(units), _) if units > 0.0 => made.seconds / units,
                    _ => made.seconds,
                }
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        let middle = rates.len() / 2;
        let median = if rates.len().is_multiple_of(2) {
            f64::midpoint(rates[middle - 1], rates[middle])
        } else {
            rates[middle]
        };
        Some((median * units.unwrap_or(1.0), rates.len()))
    }

    fn load_of(&self, made: &Manifest) -> Load {
        let mut load = Load::default();
        let ports = made.material["inputs"].as_object();
        let digests = ports.into_iter().flat_map(|ports| ports.values());
        for digest in digests.filter_map(Value::as_array).flatten() {
            match digest.as_str().and_then(|digest| self.sizes.get(digest)) {
                Some(Size::Rows(rows)) => load.add(*rows),
                Some(Size::Bytes(bytes)) => load.bytes += bytes,
                None => {}
            }
        }
        load
    }
}

impl Load {
    fn add(&mut self, rows: u64) {
        self.rows = Some(self.rows.unwrap_or(0) + rows);
    }
}

/// What the time of a stage grows with: optimizer steps, or input rows times samples. None when that is not known.
fn units(family: Family, config: &Value, load: Load) -> Option<f64> {
    match family {
        Family::Train => config["steps"].as_f64(),
        _ => {
            let samples = config["samples"].as_f64().unwrap_or(1.0);
            load.rows.map(|rows| rows as f64 * samples)
        }
    }
}

fn size(artifact: &Artifact) -> Size {
    match artifact {
        Artifact::Dataset(dataset) => Size::Rows(dataset.rows),
        Artifact::Model(model) => Size::Bytes(model.files.iter().map(|file| file.bytes).sum()),
    }
}

#[cfg(test)]
mod tests {
    use engine_core::Digest;
    use serde_json::json;

    use super::*;

    fn made(config: Value, rows: &str, seconds: f64) -> Manifest {
        let manifest = json!({
            "key": Digest::of(config.to_string().as_bytes()),
            "material": { "config": config, "inputs": { "prompts": [rows] } },
            "kind": "rollout",
            "version": 1,
            "outputs": {},
            "seconds": seconds,
            "created": "",
            "warnings": [],
            "made_by": { "version": "0", "backend": null },
        });
        serde_json::from_value(manifest).unwrap()
    }

    #[test]
    fn time_grows_with_rows_and_samples_and_the_same_configuration_counts_first() {
        let history = History {
            manifests: vec![
                made(json!({ "samples": 2, "length": 8 }), "hundred", 20.0),
                made(json!({ "samples": 4, "length": 8 }), "hundred", 80.0),
                made(json!({ "samples": 4, "length": 8 }), "thousand", 400.0),
            ],
            sizes: HashMap::from([
                ("hundred".to_owned(), Size::Rows(100)),
                ("thousand".to_owned(), Size::Rows(1000)),
            ]),
            rows: HashMap::new(),
            parts: HashMap::new(),
        };
        let load = Load {
            rows: Some(500),
            bytes: 0,
        };
        let expect = |config: Value| {
            history
                .of_stage("rollout", Family::Map, &config, load)
                .unwrap()
        };
        // Rates of 0.2 and 0.1 seconds for an answer.
        let same = expect(json!({ "samples": 4, "length": 8 }));
        assert!((same.0 - 300.0).abs() < 1e-9, "{same:?}");
        assert_eq!(same.1, 2);
        let other = expect(json!({ "samples": 1, "length": 16 }));
        assert!((other.0 - 50.0).abs() < 1e-9, "{other:?}");
        assert_eq!(other.1, 3);
        let none = history.of_stage("verify", Family::Map, &json!({}), load);
        assert_eq!(none, None);
    }
}
