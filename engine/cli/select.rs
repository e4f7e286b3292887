//! What the words of a command line name: `latest~1`, the first digits of a run, `stage.port@run`, a digest.

use std::cell::OnceCell;

use engine_core::{Artifact, Digest};
use engine_store::{Manifest, Run, Store, StoreError};
use schemas::record::{RunStarted, StageRecord};
use schemas::yaml::Document;

use crate::exit::wrong;

/// The word for the latest run.
const LATEST: &str = "latest";
/// Characters that name a run, when they name one only.
const MIN_RUN: usize = 4;
/// Digits that name an artifact.
const MIN_DIGITS: usize = 6;
/// Digits of a digest.
const DIGITS: usize = 64;
/// Manifests that are searched for a digest.
const MANIFESTS: usize = 100_000;
/// Names of stages in a message.
const NAMES: usize = 40;

/// The runs of a store. Each is read when it is asked for, since a store may hold thousands.
pub(crate) struct Runs<'a> {
    store: &'a Store,
    /// The oldest first.
    ids: Vec<String>,
    loaded: Vec<OnceCell<Option<Run>>>,
}

/// A stage of a run, and perhaps one of its ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageOf<'a> {
    pub(crate) run: &'a Run,
    pub(crate) record: &'a StageRecord,
    pub(crate) port: Option<&'a str>,
}

/// What a word names.
pub(crate) enum Target<'a> {
    Run(&'a Run),
    Stage(StageOf<'a>),
    /// A committed result, by the digits of its key or of an artifact.
    Result(Box<Manifest>),
}

impl<'a> Runs<'a> {
    /// # Errors
    /// When the store fails.
    pub(crate) fn open(store: &'a Store) -> anyhow::Result<Self> {
        let ids = store.list_runs()?;
        let loaded = ids.iter().map(|_| OnceCell::new()).collect();
        Ok(Self { store, ids, loaded })
    }

    pub(crate) fn store(&self) -> &'a Store {
        self.store
    }

    /// A run by its place; none when its first record is missing or damaged.
    fn get(&self, index: usize) -> anyhow::Result<Option<&Run>> {
        if let Some(run) = self.loaded[index].get() {
            return Ok(run.as_ref());
        }
        let run = match self.store.run(&self.ids[index]) {
            Ok(run) => Some(run),
            Err(StoreError::Corrupt { .. } | StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(self.loaded[index].get_or_init(|| run).as_ref())
    }

    /// The runs, the latest first.
    pub(crate) fn backwards(&self) -> impl Iterator<Item = anyhow::Result<&Run>> {
        let indices = (0..self.ids.len()).rev();
        indices.filter_map(|index| self.get(index).transpose())
    }

    /// # Errors
    /// When there is no run or the store fails.
    pub(crate) fn latest(&self) -> anyhow::Result<&Run> {
        self.nth_latest(0)?
            .ok_or_else(|| wrong("this store has no runs yet"))
    }

    fn nth_latest(&self, back: usize) -> anyhow::Result<Option<&Run>> {
        self.backwards().nth(back).transpose()
    }

    /// The run that a word names; none when it names no run.
    ///
    /// # Errors
    /// When it names several, counts back too far, or the store fails.
    pub(crate) fn named(&self, word: &str) -> anyhow::Result<Option<&Run>> {
        if let Some(back) = word.strip_prefix(LATEST) {
            let back = match back.strip_prefix('~') {
                Some(number) => number.parse::<usize>().ok(),
                None => back.is_empty().then_some(0),
            };
            if let Some(back) = back {
                let runs = self.ids.len();
                return self.nth_latest(back)?.map(Some).ok_or_else(|| {
                    wrong(format!(
                        "there is no run `{word}`: this store has {runs} runs"
                    ))
                });
            }
        }
        if let Some(index) = self.ids.iter().position(|id| id == word) {
            return self.get(index);
        }
        if word.len() < MIN_RUN {
            return Ok(None);
        }
        let is_it = |id: &String| {
            id.starts_with(word)
                || id
                    .rsplit_once('-')
                    .is_some_and(|(_, digits)| digits == word)
        };
        let mut found = (0..self.ids.len()).filter(|index| is_it(&self.ids[*index]));
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => Err(wrong(format!(
                "`{word}` names several runs, for example {} and {}; give more of the name",
                self.ids[first], self.ids[second]
            ))),
            (Some(index), None) => self.get(index),
            _ => Ok(None),
        }
    }

    /// The run that a word names.
    ///
    /// # Errors
    /// When it names none or several, or the store fails.
    pub(crate) fn run(&self, word: &str) -> anyhow::Result<&Run> {
        self.named(word)?.ok_or_else(|| {
            wrong(format!(
                "no run is called `{word}`; `metis-flow runs` lists them, and `latest` and `latest~1` count from the last"
            ))
        })
    }

    /// A stage by its name: in the latest run that finished it, else in the latest run that has it.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn stage(&self, name: &str) -> anyhow::Result<Option<(&Run, &StageRecord)>> {
        let mut unfinished = None;
        for run in self.backwards() {
            let run = run?;
            if let Some(record) = record_of(run, name) {
                if !record.outputs.is_empty() {
                    return Ok(Some((run, record)));
                }
                unfinished = unfinished.or(Some((run, record)));
            }
        }
        Ok(unfinished)
    }

    /// `stage`, `stage.port`, `stage@run` or `stage.port@run`; none when no run has such a stage.
    ///
    /// # Errors
    /// When there is no such run, the run has no such stage, or the store fails.
    pub(crate) fn stage_of<'b>(&'b self, text: &'b str) -> anyhow::Result<Option<StageOf<'b>>> {
        if let Some((name, word)) = text.rsplit_once('@') {
            let run = self.run(word)?;
            let found = splits(name).find_map(|(stage, port)| {
                let record = record_of(run, stage)?;
                Some(StageOf { run, record, port })
            });
            return found.map(Some).ok_or_else(|| {
                let id = &run.started.run;
                wrong(if run.started.stages.iter().any(|stage| stage == name) {
                    format!("run {id} has no record of stage `{name}`: it did not get there")
                } else {
                    format!(
                        "run {id} has no stage `{name}`; its stages are {}",
                        names(run)
                    )
                })
            });
        }
        for (stage, port) in splits(text) {
            if let Some((run, record)) = self.stage(stage)? {
                return Ok(Some(StageOf { run, record, port }));
            }
        }
        Ok(None)
    }

    /// What a word names, in this order: a run by its full name or `latest`, a stage, a run by some of its digits, a digest.
    ///
    /// # Errors
    /// When it names nothing or several things, or the store fails.
    pub(crate) fn target<'b>(&'b self, text: &'b str) -> anyhow::Result<Target<'b>> {
        let is_run = text == LATEST || text.starts_with("latest~");
        if is_run || self.ids.iter().any(|id| id == text) {
            return Ok(Target::Run(self.run(text)?));
        }
        if let Some(stage) = self.stage_of(text)? {
            return Ok(Target::Stage(stage));
        }
        if let Some(run) = self.named(text)? {
            return Ok(Target::Run(run));
        }
        if let Some(manifest) = self.by_digits(text)? {
            return Ok(Target::Result(Box::new(manifest)));
        }
        Err(self.nothing(text))
    }

    /// A committed result by the first digits of its key or of one of its artifacts.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn by_digits(&self, digits: &str) -> anyhow::Result<Option<Manifest>> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() < MIN_DIGITS || digits.len() > DIGITS || !digits.bytes().all(is_hex) {
            return Ok(None);
        }
        if digits.len() == DIGITS
            && let Some(manifest) = self.store.find_manifest(digits)?
        {
            return Ok(Some(manifest));
        }
        let manifests = self.store.recent_manifests(MANIFESTS)?.into_iter();
        let is_it = |manifest: &Manifest| {
            let is_named = |digest: &Digest| digest.as_str().starts_with(digits);
            is_named(&manifest.key)
                || (manifest.outputs.values()).any(|artifact| is_named(artifact.digest()))
        };
        Ok(manifests.into_iter().find(is_it))
    }

    /// The error for a word that names nothing.
    pub(crate) fn nothing(&self, text: &str) -> anyhow::Error {
        match self.latest() {
            Ok(run) => wrong(format!(
                "nothing is called `{text}`: no run, no stage and no digest; stages of the latest run are {}",
                names(run)
            )),
            Err(error) => error,
        }
    }

    /// What a stage of a run committed.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn result_of(&self, record: &StageRecord) -> anyhow::Result<Option<Manifest>> {
        result_of(self.store, record)
    }
}

/// What a stage of a run committed: the result whose artifacts the record names.
///
/// # Errors
/// When the store fails.
pub(crate) fn result_of(store: &Store, record: &StageRecord) -> anyhow::Result<Option<Manifest>> {
    match &record.key {
        Some(key) => Ok(store.find_generation(key, record.generation)?),
        None => Ok(None),
    }
}

/// The artifact on a port; the only one when no port is named.
///
/// # Errors
/// When the port must be named or there is none of this name.
pub(crate) fn artifact(
    stage: &str,
    manifest: &Manifest,
    port: Option<&str>,
) -> anyhow::Result<Artifact> {
    let found = match port {
        Some(port) => manifest.outputs.get(port),
        None if manifest.outputs.len() == 1 => manifest.outputs.values().next(),
        None => None,
    };
    found.cloned().ok_or_else(|| {
        let ports: Vec<String> = manifest
            .outputs
            .keys()
            .map(|port| format!("`{stage}.{port}`"))
            .collect();
        wrong(format!(
            "say which output of stage `{stage}`: {}",
            ports.join(", ")
        ))
    })
}

/// The pipeline that a run kept, as a document that can be planned.
pub(crate) fn kept_document(started: &RunStarted) -> Document {
    let text = started.resolved.as_ref().unwrap_or(&started.text);
    Document::new(started.pipeline.clone(), text.clone())
}

/// The record of a stage in a run.
pub(crate) fn record_of<'a>(run: &'a Run, name: &str) -> Option<&'a StageRecord> {
    run.stages.iter().find(|record| record.stage == name)
}

/// The ways to take a text as a stage and a port, a stage alone first: names of stages may have dots.
fn splits(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let with_port = text
        .rmatch_indices('.')
        .map(move |(place, _)| (&text[..place], Some(&text[place + 1..])));
    std::iter::once((text, None)).chain(with_port)
}

/// Names of a run's stages for a message.
pub(crate) fn names(run: &Run) -> String {
    let stages = &run.started.stages;
    let mut text = stages[..stages.len().min(NAMES)].join(", ");
    if stages.len() > NAMES {
        text.push_str(&format!(" and {} more", stages.len() - NAMES));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_tried_before_a_stage_with_a_port() {
        let tried: Vec<_> = splits("rounds.1.rl").collect();
        assert_eq!(
            tried,
            [
                ("rounds.1.rl", None),
                ("rounds.1", Some("rl")),
                ("rounds", Some("1.rl"))
            ]
        );
    }
}
