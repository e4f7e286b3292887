//! Records of runs: one object when a run starts, one when a stage ends, one when the run ends.

use chrono::Utc;
use schemas::record::{RunEnded, RunStarted, StageRecord};

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
        self.create_json(
            &format!(
                "{}/stages/{index:03}-{}.json",
                layout::run(run),
                record.stage
            ),
            record,
        )
        .map(|_| ())
    }

    /// Records that a run ended.
    ///
    /// # Errors
    /// When the store fails.
    pub fn record_end(&self, ended: &RunEnded) -> Result<()> {
        self.create_json(&format!("{}/ended.json", layout::run(&ended.run)), ended)
            .map(|_| ())
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
        let mut paths: Vec<String> = self
            .list(&format!("{folder}/stages"))?
            .into_iter()
            .map(|meta| meta.location.to_string())
            .collect();
        paths.sort();
        let stages = paths
            .iter()
            .map(|path| self.get_json(path))
            .collect::<Result<_>>()?;
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

    /// All runs, the oldest first; a run whose first record is missing or damaged is left out.
    ///
    /// # Errors
    /// When the store fails.
    pub fn runs(&self) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for name in self.list_runs()? {
            match self.run(&name) {
                Ok(run) => runs.push(run),
                Err(StoreError::Corrupt { .. } | StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    #[test]
    fn run_identities_differ_and_sort_by_time() {
        let first = new_run_id();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(first < new_run_id());
    }
}
