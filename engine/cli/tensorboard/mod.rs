//! Numbers of training as they come, in files that TensorBoard shows: `tensorboard --logdir .metis/tensorboard`.
//!
//! ```text
//! <folder>/<pipeline>/<stage>/<stage key>/events.out.tfevents.<second>.<run>
//! ```
//!
//! A stage that goes on from a checkpoint has the same key, so its new file lies beside the earlier one. It begins with the
//! mark of a session that starts at the first step it has: readers forget what the earlier file has of that step and later
//! ones. A stage that is found in the store writes nothing.

mod events;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use engine_core::{Digest, StageEvent};
use engine_plan::Plan;
use engine_runtime::RunEvent;

use crate::logging::{is_json, json_line};

/// Digits of a stage key in the name of a folder.
const KEY_DIGITS: usize = 12;

/// Writes what running stages tell of their steps.
pub(crate) struct Board {
    folder: PathBuf,
    names: Vec<String>,
    run: String,
    keys: BTreeMap<usize, Digest>,
    files: BTreeMap<usize, File>,
    /// Why nothing more is written.
    failure: Option<String>,
    clock: fn() -> f64,
}

impl Board {
    /// Nothing is written before a stage tells of a step. `folder` is that of all pipelines.
    pub(crate) fn new(folder: &Path, plan: &Plan) -> Self {
        let names = plan.stages.iter().map(|stage| stage.name.clone());
        Self::with_clock(&folder.join(file_name(&plan.name)), names.collect(), now)
    }

    fn with_clock(folder: &Path, names: Vec<String>, clock: fn() -> f64) -> Self {
        Self {
            folder: folder.to_owned(),
            names,
            run: String::new(),
            keys: BTreeMap::new(),
            files: BTreeMap::new(),
            failure: None,
            clock,
        }
    }

    pub(crate) fn observe(&mut self, event: RunEvent<'_>) {
        match event {
            RunEvent::Started { run } => run.clone_into(&mut self.run),
            RunEvent::StageStarted { index, key } => {
                self.keys.insert(index, key.clone());
            }
            RunEvent::Stage {
                index,
                event: StageEvent::Metrics { step, values },
            } if self.failure.is_none() => {
                if let Err(error) = self.write(index, *step, values) {
                    let folder = self.folder.display();
                    self.failure = Some(format!(
                        "TensorBoard files in {folder} could not be written: {error}"
                    ));
                }
            }
            RunEvent::StageEnded { index, .. } => {
                self.files.remove(&index);
            }
            _ => {}
        }
    }

    /// Says what went wrong, if anything did: no run fails for it.
    pub(crate) fn finish(self) {
        let Some(failure) = self.failure else { return };
        if is_json() {
            json_line("WARN", &failure, serde_json::Value::Null);
        } else {
            eprintln!("warning: {failure}");
        }
    }

    fn write(&mut self, index: usize, step: u64, values: &[(String, f64)]) -> io::Result<()> {
        let time = (self.clock)();
        if !self.files.contains_key(&index) {
            let mut file = self.create(index, time)?;
            events::write_start(&mut file, time, step)?;
            self.files.insert(index, file);
        }
        let file = self.files.get_mut(&index).expect("the file was just made");
        events::write_scalars(file, time, step, values)
    }

    fn create(&self, index: usize, time: f64) -> io::Result<File> {
        let key = self.keys.get(&index).map_or("", Digest::as_str);
        let folder = self
            .folder
            .join(file_name(&self.names[index]))
            .join(&key[..KEY_DIGITS.min(key.len())]);
        std::fs::create_dir_all(&folder)?;
        // Readers take files in the order of their names. A stage whose worker was lost can begin twice in a second.
        let name = |second: u64| {
            folder.join(format!(
                "events.out.tfevents.{second:010}.{}",
                file_name(&self.run)
            ))
        };
        let mut second = time as u64;
        loop {
            match File::create_new(name(second)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => second += 1,
                other => return other,
            }
        }
    }
}

/// A name as a part of a path: anything but letters, digits, `-`, `_` and `.` becomes `_`.
fn file_name(name: &str) -> String {
    let fits = |character: char| character.is_alphanumeric() || "-_.".contains(character);
    let name: String = name
        .chars()
        .map(|character| if fits(character) { character } else { '_' })
        .collect();
    if name.trim_matches('.').is_empty() {
        format!("_{name}")
    } else {
        name
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the files say when a step was made"
)]
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn golden() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tensorboard")
    }

    fn board(folder: &Path, run: &str, clock: fn() -> f64) -> Board {
        let names = vec!["source".to_owned(), "rl/1".to_owned()];
        let mut board = Board::with_clock(folder, names, clock);
        board.observe(RunEvent::Started { run });
        board.observe(RunEvent::StageStarted {
            index: 1,
            key: &Digest::of(b"key"),
        });
        board
    }

    fn tell(board: &mut Board, step: u64, values: &[(&str, f64)]) {
        let values = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        board.observe(RunEvent::Stage {
            index: 1,
            event: &StageEvent::Metrics { step, values },
        });
    }

    /// What TensorBoard's own writer makes of the same steps (`tests/golden/tensorboard/make.py`, which also reads the
    /// two files as one curve without doubles).
    #[test]
    fn files_are_those_of_tensorboard_and_a_stage_that_goes_on_gets_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = board(folder.path(), "first", || 1_700_000_000.25);
        tell(&mut first, 1, &[("loss", 2.5), ("time/update_s", 0.125)]);
        tell(&mut first, 2, &[("loss", 1.5)]);
        tell(&mut first, 300, &[("loss", f64::NAN)]);
        assert!(first.failure.is_none());
        let mut second = board(folder.path(), "second", || 1_700_000_100.5);
        tell(&mut second, 2, &[("loss", 1.25)]);
        tell(&mut second, 3, &[("loss", 1.0), ("grad_norm", 1e30)]);
        let stage = folder
            .path()
            .join("rl_1")
            .join(&Digest::of(b"key").as_str()[..KEY_DIGITS]);
        for (name, expected) in [
            ("events.out.tfevents.1700000000.first", "first.tfevents"),
            ("events.out.tfevents.1700000100.second", "second.tfevents"),
        ] {
            let written = std::fs::read(stage.join(name)).unwrap();
            assert_eq!(written, std::fs::read(golden().join(expected)).unwrap());
        }
        assert_eq!(std::fs::read_dir(&stage).unwrap().count(), 2);
    }

    #[test]
    fn a_worker_that_begins_again_gets_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let mut board = board(folder.path(), "run", || 5.0);
            tell(&mut board, 1, &[("loss", 1.0)]);
            assert!(board.failure.is_none());
        }
        let stage = std::fs::read_dir(folder.path().join("rl_1"))
            .unwrap()
            .next();
        let files = std::fs::read_dir(stage.unwrap().unwrap().path()).unwrap();
        assert_eq!(files.count(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_written_stops_the_files_and_not_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let mut board = board(&blocked, "run", || 5.0);
        tell(&mut board, 1, &[("loss", 1.0)]);
        tell(&mut board, 2, &[("loss", 1.0)]);
        assert!(board.failure.unwrap().contains("could not be written"));
    }

    #[test]
    fn names_become_parts_of_paths() {
        assert_eq!(file_name("rounds-1-rl"), "rounds-1-rl");
        assert_eq!(file_name("a/b c"), "a_b_c");
        assert_eq!(file_name(".."), "_..");
    }
}
