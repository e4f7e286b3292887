//! What ran when, in the trace event format of Chrome, which ui.perfetto.dev shows: the run, its stages and their parts as
//! complete events, those that overlap on tracks of their own.

use std::io::Write as _;
use std::path::Path;

use engine_store::Run;
use schemas::record::{StageRecord, StageStatus};
use serde_json::{Value, json};

use crate::exit::wrong;
use crate::output::write_file;
use crate::text::{count, epoch_micros};

/// The one process of a trace.
const PROCESS: u32 = 1;
/// First tracks of the run, of stages and of parts. Tracks are sorted by their numbers.
const RUN_TRACK: usize = 1;
const STAGE_TRACKS: usize = 100;
const PART_TRACKS: usize = 10_000;

/// An event before it has a track.
struct Span {
    name: String,
    category: &'static str,
    /// Microseconds since 1970.
    start: i64,
    duration: i64,
    arguments: Value,
}

pub(super) fn write(run: &Run, to: &Path) -> anyhow::Result<()> {
    let trace = trace(run)?;
    let events = trace["traceEvents"].as_array().map_or(0, Vec::len);
    if to == Path::new("-") {
        println!("{trace}");
        return Ok(());
    }
    write_file(to, |out| {
        serde_json::to_writer(&mut *out, &trace)?;
        Ok(out.write_all(b"\n")?)
    })?;
    eprintln!(
        "{} events are in {}; open it at https://ui.perfetto.dev",
        count(events as u64),
        to.display()
    );
    Ok(())
}

fn trace(run: &Run) -> anyhow::Result<Value> {
    let id = &run.started.run;
    let start = epoch_micros(&run.started.started)
        .ok_or_else(|| wrong(format!("the record of run {id} has no time of its start")))?;
    let stages: Vec<Span> = run.stages.iter().filter_map(stage).collect();
    let parts: Vec<Span> = run.stages.iter().flat_map(parts).collect();
    let ends = stages.iter().chain(&parts).map(Span::end);
    let end = match &run.ended {
        Some(ended) => start + micros(ended.seconds),
        // It was killed; the last thing that is known of it.
        None => ends.max().unwrap_or(start),
    };
    let whole = Span {
        name: format!("{} ({})", run.started.pipeline, run.status()),
        category: "run",
        start,
        duration: end - start,
        arguments: json!({ "run": id, "version": run.started.version }),
    };
    let mut events = vec![json!({
        "name": "process_name", "ph": "M", "pid": PROCESS, "tid": 0,
        "args": { "name": format!("metis-flow run {id}") },
    })];
    for (first, title, spans) in [
        (RUN_TRACK, "run", vec![whole]),
        (STAGE_TRACKS, "stages", stages),
        (PART_TRACKS, "parts", parts),
    ] {
        for (place, track) in tracks(spans).into_iter().enumerate() {
            let number = first + place;
            let name = if place == 0 {
                title.to_owned()
            } else {
                format!("{title} {}", place + 1)
            };
            events.push(json!({
                "name": "thread_name", "ph": "M", "pid": PROCESS, "tid": number, "args": { "name": name },
            }));
            events.push(json!({
                "name": "thread_sort_index", "ph": "M", "pid": PROCESS, "tid": number,
                "args": { "sort_index": number },
            }));
            events.extend(track.into_iter().map(|span| span.event(number)));
        }
    }
    Ok(json!({
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": { "run": id, "pipeline": run.started.pipeline },
    }))
}

fn stage(record: &StageRecord) -> Option<Span> {
    if matches!(
        record.status,
        StageStatus::Skipped | StageStatus::NotSelected
    ) {
        return None;
    }
    Some(Span {
        name: record.stage.clone(),
        category: "stage",
        start: epoch_micros(&record.started)?,
        duration: micros(record.seconds),
        arguments: json!({
            "operator": record.kind,
            "status": record.status.as_str(),
            "key": record.key,
            "rows": record.rows,
            "parts": record.parts,
            "retries": record.retries,
            "error": record.error,
        }),
    })
}

fn parts(record: &StageRecord) -> Vec<Span> {
    let Some(start) = epoch_micros(&record.started) else {
        return Vec::new();
    };
    let parts = record.spans.iter();
    parts
        .map(|part| Span {
            name: record.stage.clone(),
            category: "part",
            start: start + micros(part.start),
            duration: micros(part.seconds),
            arguments: json!({ "part": part.part, "rows": part.rows, "lane": part.lane }),
        })
        .collect()
}

impl Span {
    fn end(&self) -> i64 {
        self.start + self.duration
    }

    fn event(self, track: usize) -> Value {
        json!({
            "name": self.name,
            "cat": self.category,
            "ph": "X",
            "ts": self.start,
            "dur": self.duration,
            "pid": PROCESS,
            "tid": track,
            "args": self.arguments,
        })
    }
}

/// As few tracks as there are spans at one time: each goes to the first track that is free.
fn tracks(mut spans: Vec<Span>) -> Vec<Vec<Span>> {
    spans.sort_by_key(|span| (span.start, span.end()));
    let mut tracks: Vec<Vec<Span>> = Vec::new();
    for span in spans {
        let is_free =
            |track: &&mut Vec<Span>| track.last().is_none_or(|last| last.end() <= span.start);
        match tracks.iter_mut().find(is_free) {
            Some(track) => track.push(span),
            None => tracks.push(vec![span]),
        }
    }
    tracks
}

fn micros(seconds: f64) -> i64 {
    (seconds.max(0.0) * 1e6).round() as i64
}

#[cfg(test)]
mod tests {
    use schemas::record::{PartSpan, RunEnded, RunStarted};

    use super::*;

    #[test]
    fn spans_at_one_time_are_on_tracks_of_their_own() {
        let stage = |name: &str, started: &str, seconds: f64| StageRecord {
            stage: name.to_owned(),
            started: started.to_owned(),
            seconds,
            status: StageStatus::Done,
            ..StageRecord::default()
        };
        let mut mapped = stage("b", "2026-01-01T00:00:01.000Z", 4.0);
        mapped.spans = vec![
            PartSpan {
                start: 0.5,
                seconds: 1.0,
                ..PartSpan::default()
            },
            PartSpan {
                start: 1.5,
                seconds: 1.0,
                ..PartSpan::default()
            },
        ];
        let run = Run {
            started: RunStarted {
                run: "r".to_owned(),
                pipeline: "p".to_owned(),
                text: String::new(),
                resolved: None,
                started: "2026-01-01T00:00:00.000Z".to_owned(),
                version: String::new(),
                stages: Vec::new(),
            },
            stages: vec![
                stage("a", "2026-01-01T00:00:00.500Z", 2.0),
                mapped,
                stage("c", "2026-01-01T00:00:02.500Z", 0.25),
            ],
            ended: Some(RunEnded {
                run: "r".to_owned(),
                ended: String::new(),
                status: "done".to_owned(),
                seconds: 6.0,
            }),
        };
        let trace = trace(&run).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let found: Vec<(&str, i64, i64)> = events
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| {
                (
                    event["cat"].as_str().unwrap(),
                    event["tid"].as_i64().unwrap(),
                    event["dur"].as_i64().unwrap(),
                )
            })
            .collect();
        let expected = [
            ("run", 1, 6_000_000),
            ("stage", 100, 2_000_000),
            ("stage", 100, 250_000),
            ("stage", 101, 4_000_000),
            ("part", 10_000, 1_000_000),
            ("part", 10_000, 1_000_000),
        ];
        assert_eq!(found, expected);
    }
}
