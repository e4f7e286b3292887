//! `verify`: judges answers outside of any pipeline, and says why.

mod asked;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use operators_verdict::{Outcome, VerifyConfig as Rule};
use operators_verifier::VerifyConfig;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::print_json;
use crate::args::VerifyArgs;
use crate::exit::{Exit, wrong};

/// Bytes of lines that are held and judged together.
const BATCH_BYTES: usize = 8 << 20;

/// Longest line that is read.
const MAX_LINE: usize = 64 << 20;

pub(crate) fn verify(arguments: &VerifyArgs) -> anyhow::Result<Exit> {
    let config: VerifyConfig = serde_json::from_str(&arguments.verifier)
        .map_err(|error| wrong(format!("`--verifier` is no verifier: {error}")))?;
    if let Some(fault) = config.faults(&[]).first() {
        let place = fault.path.join(".");
        return Err(wrong(format!("`--verifier`, `{place}`: {}", fault.message)));
    }
    let rule = config.rule();
    if let Some(file) = &arguments.jsonl {
        return match &rule {
            Some(rule) => judge_file(file, &|lines, first| by_rule(rule, lines, file, first)),
            None => {
                let asked = asked::Asked::open(&config)?;
                judge_file(file, &|lines, first| asked.judge_lines(lines, file, first))
            }
        };
    }
    let (Some(gold), Some(answer)) = (&arguments.gold, &arguments.answer) else {
        return Err(wrong("give `--gold` and `--answer`, or `--jsonl`"));
    };
    match &rule {
        Some(rule) => explain(rule, gold, answer, arguments.json),
        None => {
            let question = arguments.question.as_deref().unwrap_or_default();
            asked::Asked::open(&config)?.explain(gold, answer, question, arguments.json)
        }
    }
}

/// Explains one verdict.
fn explain(config: &Rule, gold: &str, answer: &str, as_json: bool) -> anyhow::Result<Exit> {
    let start = Instant::now();
    let _ = config
        .prepare(gold)
        .map(|gold| config.judge_answer(&gold, answer));
    let micros = start.elapsed().as_micros();
    let told = config.explain_answer(gold, answer);
    if as_json {
        let parts: Vec<_> = told
            .parts
            .iter()
            .map(|(name, outcome)| json!({ "verifier": name, "verdict": outcome.as_str() }))
            .collect();
        print_json(&json!({
            "verdict": told.verdict.outcome.as_str(),
            "reason": told.reason,
            "extracted": told.verdict.extracted,
            "gold_form": told.gold,
            "answer_form": told.answer,
            "format_ok": told.verdict.format_ok,
            "verifier": config.name(),
            "parts": parts,
            "agreement": told.agreement,
            "microseconds": micros,
        }))?;
    } else {
        println!("verdict    {}", told.verdict.outcome.as_str());
        println!("reason     {}", told.reason);
        println!(
            "extracted  {}",
            told.verdict.extracted.as_deref().unwrap_or("-")
        );
        println!("gold       {}", told.gold);
        println!("answer     {}", told.answer.as_deref().unwrap_or("-"));
        println!("verifier   {}", config.name());
        for (name, outcome) in &told.parts {
            println!("  {name}: {}", outcome.as_str());
        }
        println!("time       {micros} us");
    }
    Ok(Exit::Done)
}

/// A line that is read.
#[derive(Deserialize)]
struct Pair {
    gold: String,
    answer: String,
    #[serde(default)]
    question: String,
}

/// A line that is printed.
#[derive(Serialize)]
struct Judged<'a> {
    verdict: &'static str,
    reason: &'a str,
    extracted: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<f64>,
}

/// What is printed for some lines, of which the first has this number: a text or an error for each.
type Judge<'a> = &'a dyn Fn(&[Vec<u8>], usize) -> anyhow::Result<Vec<anyhow::Result<String>>>;

/// Judges a file, batch by batch.
fn judge_file(file: &Path, judge: Judge<'_>) -> anyhow::Result<Exit> {
    let mut input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let opened = File::open(file)
            .map_err(|error| wrong(format!("could not open {}: {error}", file.display())))?;
        Box::new(BufReader::with_capacity(1 << 20, opened))
    };
    let stdout = std::io::stdout();
    let mut out = BufWriter::with_capacity(1 << 20, stdout.lock());
    let mut first = 1;
    loop {
        let lines =
            read_batch(&mut input).with_context(|| format!("could not read {}", file.display()))?;
        if lines.is_empty() {
            break;
        }
        let judged = judge(&lines, first)?;
        first += lines.len();
        for line in judged {
            let line = match line {
                Ok(line) => line,
                Err(error) => {
                    // What was judged before the bad line is printed.
                    out.flush()?;
                    return Err(error);
                }
            };
            out.write_all(line.as_bytes())?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Judges lines on all cores.
#[expect(
    clippy::unnecessary_wraps,
    reason = "programs and judges, which are called in the same way, can fail"
)]
fn by_rule(
    rule: &Rule,
    lines: &[Vec<u8>],
    file: &Path,
    first: usize,
) -> anyhow::Result<Vec<anyhow::Result<String>>> {
    let judged = lines
        .par_iter()
        .with_min_len(64)
        .enumerate()
        .map(|(index, line)| judge_line(rule, line, file, first + index));
    Ok(judged.collect())
}

fn read_batch(input: &mut dyn BufRead) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut lines = Vec::new();
    let mut bytes = 0;
    while bytes < BATCH_BYTES {
        let mut line = Vec::new();
        let mut limited = std::io::Read::take(&mut *input, MAX_LINE as u64 + 1);
        if limited.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() > MAX_LINE {
            return Err(wrong(format!("a line has more than {MAX_LINE} bytes")));
        }
        while line.last().is_some_and(u8::is_ascii_whitespace) {
            line.pop();
        }
        bytes += line.len() + 64;
        lines.push(line);
    }
    Ok(lines)
}

/// Reads a line.
fn pair(line: &[u8], file: &Path, number: usize) -> anyhow::Result<Pair> {
    serde_json::from_slice(line).map_err(|error| {
        wrong(format!(
            "{}, line {number}: {error}; a line is an object with the texts `gold` and `answer`",
            file.display()
        ))
    })
}

fn judge_line(rule: &Rule, line: &[u8], file: &Path, number: usize) -> anyhow::Result<String> {
    let pair = pair(line, file, number)?;
    let judged = match rule.prepare(&pair.gold) {
        Ok(gold) => {
            let (outcome, reason, extracted) = rule.judge_answer(&gold, &pair.answer);
            serde_json::to_string(&Judged {
                verdict: outcome.as_str(),
                reason,
                extracted: Some(&extracted),
                agreement: None,
            })
        }
        Err(error) => serde_json::to_string(&Judged {
            verdict: Outcome::Failed.as_str(),
            reason: &format!("gold answer: {error}"),
            extracted: None,
            agreement: None,
        }),
    };
    Ok(judged?)
}
