//! Verdicts of programs and judges.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use engine_core::operator::BatchReader;
use engine_core::{Artifact, OperatorError, StageContext, StageEvent, StageView};
use engine_runtime::CancelToken;
use operators_verifier::{Judged as Told, Question, Verifier, VerifyConfig};
use serde_json::json;

use super::{Judged, pair};
use crate::commands::print_json;
use crate::exit::{Exit, wrong};
use crate::signals;

/// Lines that are judged together: what a judge is asked at the same time.
const TOGETHER: usize = 256;

impl Drop for Asked {
    /// Says what judges cost, however it ends.
    fn drop(&mut self) {
        self.verifier.tell_account(&self.view);
    }
}

/// A verifier that asks somebody else.
pub(super) struct Asked {
    verifier: Verifier,
    name: &'static str,
    view: Alone,
}

impl Asked {
    /// Prepares to ask. From now on, Ctrl-C ends programs first.
    pub(super) fn open(config: &VerifyConfig) -> anyhow::Result<Self> {
        if config.needs_model() {
            return Err(wrong(
                "a judge without `endpoint` is a model on an input of a stage; name a server here, for example one of `metis-flow serve`",
            ));
        }
        let view = Alone(CancelToken::default());
        signals::listen(&view.0).context("could not listen for signals")?;
        let context = StageContext {
            stage: "verify",
            seed: 0,
            root: Path::new("."),
            backend: None,
        };
        Ok(Self {
            verifier: Verifier::open(config, &context, &view)?.of_bare_answers(),
            name: config.name(),
            view,
        })
    }

    /// Explains one verdict.
    pub(super) fn explain(
        &self,
        gold: &str,
        answer: &str,
        question: &str,
        as_json: bool,
    ) -> anyhow::Result<Exit> {
        let start = Instant::now();
        let question = Question {
            prompt_id: "-",
            question,
            gold: Some(gold),
            text: answer,
        };
        let told = self.verifier.judge(&[question], &self.view)?;
        let micros = start.elapsed().as_micros();
        let [told] = &told[..] else {
            anyhow::bail!("one answer was judged {} times", told.len());
        };
        let verdict = told.verdict.outcome.as_str();
        if as_json {
            print_json(&json!({
                "verdict": verdict,
                "reason": told.reason,
                "extracted": told.verdict.extracted,
                "format_ok": told.verdict.format_ok,
                "verifier": self.name,
                "agreement": told.agreement,
                "microseconds": micros,
            }))?;
        } else {
            println!("verdict    {verdict}");
            println!("reason     {}", told.reason);
            println!(
                "extracted  {}",
                told.verdict.extracted.as_deref().unwrap_or("-")
            );
            println!("verifier   {}", self.name);
            println!("time       {micros} us");
        }
        Ok(Exit::Done)
    }

    /// Judges lines of which the first has this number.
    pub(super) fn judge_lines(
        &self,
        lines: &[Vec<u8>],
        file: &Path,
        first: usize,
    ) -> anyhow::Result<Vec<anyhow::Result<String>>> {
        let mut printed = Vec::with_capacity(lines.len());
        for (index, lines) in lines.chunks(TOGETHER).enumerate() {
            let first = first + index * TOGETHER;
            let numbered = lines.iter().zip(first..);
            let mut pairs = Vec::with_capacity(lines.len());
            let mut bad = None;
            for (line, number) in numbered {
                match pair(line, file, number) {
                    Ok(pair) => pairs.push(pair),
                    Err(error) => {
                        bad = Some(error);
                        break;
                    }
                }
            }
            let names: Vec<String> = (first..)
                .take(pairs.len())
                .map(|number| format!("line {number}"))
                .collect();
            let questions: Vec<Question<'_>> = pairs
                .iter()
                .zip(&names)
                .map(|(pair, name)| Question {
                    prompt_id: name,
                    question: &pair.question,
                    gold: Some(&pair.gold),
                    text: &pair.answer,
                })
                .collect();
            let told = self.verifier.judge(&questions, &self.view)?;
            printed.extend(told.iter().map(line));
            if let Some(error) = bad {
                printed.push(Err(error));
                return Ok(printed);
            }
        }
        Ok(printed)
    }
}

fn line(told: &Told) -> anyhow::Result<String> {
    Ok(serde_json::to_string(&Judged {
        verdict: told.verdict.outcome.as_str(),
        reason: &told.reason,
        extracted: told.verdict.extracted.as_deref(),
        agreement: told.agreement,
    })?)
}

/// The surroundings of a verifier that is no stage.
struct Alone(CancelToken);

/// What a verifier asks of a stage in vain.
fn nothing<T>(what: &str) -> Result<T, OperatorError> {
    let message = format!("the command `verify` has no {what}");
    Err(OperatorError::Internal(message))
}

impl StageView for Alone {
    fn inputs(&self, _port: &str) -> &[Artifact] {
        &[]
    }

    fn input_ports(&self) -> Vec<String> {
        Vec::new()
    }

    fn read(&self, _port: &str) -> Result<BatchReader, OperatorError> {
        nothing("inputs")
    }

    fn part_urls(&self, _port: &str) -> Result<Vec<String>, OperatorError> {
        nothing("inputs")
    }

    fn model_folder(&self, _port: &str) -> Result<PathBuf, OperatorError> {
        nothing("inputs")
    }

    fn put_media(&self, _bytes: &[u8]) -> Result<String, OperatorError> {
        nothing("store")
    }

    fn media(&self, _digest: &str) -> Result<Vec<u8>, OperatorError> {
        nothing("store")
    }

    fn scratch(&self) -> &Path {
        // A path without a parent: answers of servers are not kept.
        Path::new("")
    }

    fn event(&self, event: StageEvent) {
        match event {
            StageEvent::Warning(message) => tracing::warn!("{message}"),
            StageEvent::Note(note) => eprintln!("{note}"),
            _ => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
