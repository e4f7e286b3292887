//! Records of runs: one object when a run starts, one when a stage ends, one when the run ends.
//!
//! Stages whose result was in the store share one object, written near the end of the run: a run of a thousand of them
//! would spend most of its time on records otherwise. A run that was killed lacks it, and lacks nothing else.

use std::collections::BTreeMap;

use chrono::Utc;
use schemas::record::{RunEnded, RunStarted, StageRecord};

use crate::side_by_side::side_by_side;
use crate::{Result, Store, StoreError, layout};

/// All that is known of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// How it started.
    pub started: RunStarted,
    /// The stages that ended, in topological order.
    pub stages: Vec<StageRecord>,
    /// How it ended; absent while it runs and after a crash.
    pub ended: Option<RunEnded>,
}

impl Run {
    /// `done`, `failed`, `interrupted`, or `unfinished` for a run that has not said how it ended.
    #[must_use]
    pub fn status(&self) -> &str {
        self.ended
            .as_ref()
            .map_or("unfinished", |ended| &ended.status)
    }
}

/// A fresh identity for a run: sorts by time, with digits against two runs in one instant.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "runs sort by the time of their start"
)]
pub fn new_run_id() -> String {
    let now = Utc::now();
    let unique = format!("{} {:?}", std::process::id(), now);
    format!(
        "{}-{}",
        now.format("%Y%m%dT%H%M%S%3fZ"),
        &blake3::hash(unique.as_bytes()).to_hex().as_str()[..6]
    )
}

impl Store {
    /// Records that a run starts.
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_start(&self, started: &RunStarted) -> Result<()> {
        self.create_json(
            &format!("{}/started.json", layout::run(&started.run)),
            started,
        )
        .map(|_| ())
    }

    /// Records that a stage ended; `index` is its place in topological order.
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_stage(&self, run: &str, index: usize, record: &StageRecord) -> Result<()> {
        let path = format!(
            "{}/stages/{index:06}-{}.json",
            layout::run(run),
            record.stage
        );
        self.create_json(&path, record).map(|_| ())
    }

    /// Records stages whose result was in the store, with their places in topological order. Once in a run, before
    /// [`Self::record_end`].
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_cached(&self, run: &str, records: &[(usize, StageRecord)]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.create_json(&cached(run), &records).map(|_| ())
    }

    /// Says that a run is at work, which it does from time to time: `gc` removes nothing while a run may be. A run that says
    /// nothing for longer than the age that `gc` goes by counts as killed. Failing is no error.
    pub fn record_alive(&self, run: &str) {
        let folder = format!("{}/alive", layout::run(run));
        let earlier = self.list(&folder).unwrap_or_default();
        // Names differ, so that there is no moment without one and nothing is written over.
        let latest = earlier
            .iter()
            .filter_map(|meta| beat(meta.location.as_ref()));
        let next = latest.max().map_or(0, |number| number + 1);
        if self
            .create(&format!("{folder}/{next:09}"), b"alive\n".to_vec())
            .is_ok()
        {
            for meta in earlier {
                // The next one comes by here again.
                let _ = self.remove(meta.location.as_ref());
            }
        }
    }

    /// Records that a run ended.
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_end(&self, ended: &RunEnded) -> Result<()> {
        let folder = layout::run(&ended.run);
        self.create_json(&format!("{folder}/ended.json"), ended)?;
        for meta in self.list(&format!("{folder}/alive")).unwrap_or_default() {
            // It says nothing any more, so that it does no harm either.
            let _ = self.remove(meta.location.as_ref());
        }
        Ok(())
    }

    /// Identities of all runs, the oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list_runs(&self) -> Result<Vec<String>> {
        self.list_folders(layout::RUNS)
    }

    /// The records of a run.
    ///
    /// # Errors
    /// When there is no such run, a record is damaged, or the store fails.
    pub fn run(&self, run: &str) -> Result<Run> {
        let folder = layout::run(run);
        let started = self.get_json(&format!("{folder}/started.json"))?;
        let stages = self.stage_records(run)?;
        let ended = match self.get_json(&format!("{folder}/ended.json")) {
            Ok(ended) => Some(ended),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Run {
            started,
            stages,
            ended,
        })
    }

    /// The stages of a run that ended, in topological order.
    fn stage_records(&self, run: &str) -> Result<Vec<StageRecord>> {
        let paths: Vec<String> = self
            .list(&format!("{}/stages", layout::run(run)))?
            .into_iter()
            .map(|meta| meta.location.to_string())
            .collect();
        let records = side_by_side(self, &paths, |path| self.get_json::<StageRecord>(path))?;
        let mut stages: BTreeMap<(usize, &str), StageRecord> = BTreeMap::new();
        let cached: Vec<(usize, StageRecord)> = match self.get_json(&cached(run)) {
            Ok(cached) => cached,
            Err(StoreError::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        for (index, record) in cached {
            stages.insert((index, ""), record);
        }
        for (path, record) in paths.iter().zip(records) {
            let name = path.rsplit('/').next().unwrap_or_default();
            let index = name.split('-').next().and_then(|index| index.parse().ok());
            let index = index.unwrap_or(usize::MAX);
            stages.remove(&(index, ""));
            stages.insert((index, name), record);
        }
        Ok(stages.into_values().collect())
    }

    /// The latest runs, the latest first; a run whose first record is missing or damaged is left out.
    ///
    /// # Errors
    /// When the store fails.
    pub fn recent_runs(&self, limit: usize) -> Result<Vec<Run>> {
        let mut names = self.list_runs()?;
        names.reverse();
        names.truncate(limit);
        self.readable_runs(&names)
    }

    /// All runs, the oldest first; a run whose first record is missing or damaged is left out.
    ///
    /// # Errors
    /// When the store fails.
    pub fn runs(&self) -> Result<Vec<Run>> {
        self.readable_runs(&self.list_runs()?)
    }

    fn readable_runs(&self, names: &[String]) -> Result<Vec<Run>> {
        let runs = side_by_side(self, names, |name| match self.run(name) {
            Ok(run) => Ok(Some(run)),
            Err(StoreError::Corrupt { .. } | StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        })?;
        Ok(runs.into_iter().flatten().collect())
    }
}

/// Where the stages are whose result was in the store.
fn cached(run: &str) -> String {
    format!("{}/cached.json", layout::run(run))
}

/// Number of a sign of life.
fn beat(path: &str) -> Option<u64> {
    path.rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use schemas::record::StageStatus;

    use super::*;

    #[test]
    fn a_run_reads_back_with_its_stages_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        assert!(store.runs().unwrap().is_empty());
        let run = new_run_id();
        let started = RunStarted {
            run: run.clone(),
            pipeline: "rise".to_owned(),
            text: "version: 1".to_owned(),
            resolved: Some("stages: {}".to_owned()),
            started: "2026-01-01T00:00:00Z".to_owned(),
            version: "0.1.0".to_owned(),
            stages: vec!["b".to_owned(), "a".to_owned()],
        };
        let stage = |name: &str| StageRecord {
            stage: name.to_owned(),
            kind: "sql".to_owned(),
            key: None,
            status: StageStatus::Done,
            started: String::new(),
            seconds: 0.5,
            rows: Some(3),
            outputs: BTreeMap::new(),
            warnings: vec![],
            error: None,
            ..StageRecord::default()
        };
        store.record_start(&started).unwrap();
        store.record_stage(&run, 1, &stage("a")).unwrap();
        store.record_stage(&run, 0, &stage("b")).unwrap();
        assert_eq!(store.run(&run).unwrap().status(), "unfinished");
        let ended = RunEnded {
            run: run.clone(),
            ended: String::new(),
            status: "done".to_owned(),
            seconds: 1.0,
        };
        store.record_end(&ended).unwrap();
        let expected = Run {
            started,
            stages: vec![stage("b"), stage("a")],
            ended: Some(ended),
        };
        assert_eq!(store.runs().unwrap(), [expected]);
        assert_eq!(store.list_runs().unwrap(), [run]);
    }

    fn started(run: &str) -> RunStarted {
        RunStarted {
            run: run.to_owned(),
            pipeline: "p".to_owned(),
            text: String::new(),
            resolved: None,
            started: String::new(),
            version: String::new(),
            stages: vec![],
        }
    }

    fn stage(name: &str, status: StageStatus) -> StageRecord {
        StageRecord {
            stage: name.to_owned(),
            status,
            ..StageRecord::default()
        }
    }

    #[test]
    fn cached_stages_share_an_object_and_come_back_in_their_places() {
        let store = Store::open("memory://").unwrap();
        store.record_start(&started("run")).unwrap();
        let name = |index: usize| format!("stage{index}");
        let cached: Vec<(usize, StageRecord)> = (0..1200)
            .filter(|index| index % 100 != 7)
            .map(|index| (index, stage(&name(index), StageStatus::Cached)))
            .collect();
        for index in (7..1200).step_by(100) {
            let record = stage(&name(index), StageStatus::Done);
            store.record_stage("run", index, &record).unwrap();
        }
        // Killed at this moment, the run lacks what was cached and nothing else.
        assert_eq!(store.run("run").unwrap().stages.len(), 12);
        store.record_cached("run", &cached).unwrap();
        let stages = store.run("run").unwrap().stages;
        let names: Vec<&str> = stages.iter().map(|record| record.stage.as_str()).collect();
        let expected: Vec<String> = (0..1200).map(name).collect();
        assert_eq!(names, expected);
        assert_eq!(store.list("v1/runs/run").unwrap().len(), 1 + 12 + 1);
    }

    #[test]
    fn the_latest_runs_come_first() {
        let store = Store::open("memory://").unwrap();
        for run in ["a", "b", "c"] {
            store.record_start(&started(run)).unwrap();
        }
        let recent = store.recent_runs(2).unwrap();
        let names: Vec<&str> = recent.iter().map(|run| run.started.run.as_str()).collect();
        assert_eq!(names, ["c", "b"]);
    }

    #[test]
    fn a_run_leaves_one_sign_of_life_until_it_ends() {
        let store = Store::open("memory://").unwrap();
        store.record_start(&started("run")).unwrap();
        let signs = || -> Vec<String> {
            let listed = store.list("v1/runs/run/alive").unwrap();
            listed
                .iter()
                .map(|meta| meta.location.to_string())
                .collect()
        };
        store.record_alive("run");
        let first = signs();
        store.record_alive("run");
        assert_eq!((first.len(), signs().len()), (1, 1));
        assert_ne!(first, signs());
        let ended = RunEnded {
            run: "run".to_owned(),
            ended: String::new(),
            status: "done".to_owned(),
            seconds: 1.0,
        };
        store.record_end(&ended).unwrap();
        assert!(signs().is_empty());
    }

    #[test]
    fn records_of_before_there_were_parts_still_read() {
        let store = Store::open("memory://").unwrap();
        store.record_start(&started("run")).unwrap();
        let old = serde_json::json!({
            "stage": "a", "kind": "sql", "key": null, "status": "done", "started": "",
            "seconds": 0.5, "rows": 3, "outputs": {}, "warnings": [], "error": null,
        });
        store
            .create_json("v1/runs/run/stages/007-a.json", &old)
            .unwrap();
        let later = stage("b", StageStatus::Done);
        store.record_stage("run", 10, &later).unwrap();
        let stages = store.run("run").unwrap().stages;
        assert_eq!(stages[0].rows, Some(3));
        assert_eq!(stages[1], later);
    }

    #[test]
    fn run_identities_differ_and_sort_by_time() {
        let first = new_run_id();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(first < new_run_id());
    }
}
