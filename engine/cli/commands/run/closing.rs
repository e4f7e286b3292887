//! What is said when a run has ended.

use engine_core::Artifact;
use engine_plan::Plan;
use engine_runtime::{RunOutcome, StageOutcome};
use schemas::record::{StageRecord, StageStatus};
use serde_json::json;

use crate::exit::Exit;
use crate::logging::json_line;
use crate::text::{count, duration, lines};

/// Stages up to which the table has all of them.
const ALL_STAGES: usize = 60;
/// Failures whose causes are told.
const FAILURES: usize = 10;

/// What an interrupted run says, with the command that goes on.
pub(super) const INTERRUPTED: &str =
    "interrupted; what was finished is kept, and this goes on with the rest";

/// A line for each stage. Of many stages only those that matter have one.
pub(super) fn table(outcome: &RunOutcome) -> String {
    let stages = &outcome.stages;
    let mut table = crate::text::table(&["stage", "operator", "rows", "time", ""], &[2, 3]);
    if stages.len() <= ALL_STAGES {
        for stage in stages {
            table.add_row(cells(stage));
        }
        return lines(&table);
    }
    let mut is_shown: Vec<bool> = stages
        .iter()
        .map(|stage| {
            matches!(
                stage.record.status,
                StageStatus::Failed | StageStatus::Interrupted
            )
        })
        .collect();
    let mut ran: Vec<usize> = (0..stages.len())
        .filter(|index| stages[*index].record.status == StageStatus::Done)
        .collect();
    ran.sort_by(|left, right| {
        let seconds = |index: &usize| stages[*index].record.seconds;
        seconds(right).total_cmp(&seconds(left))
    });
    let room = ALL_STAGES.saturating_sub(is_shown.iter().filter(|shown| **shown).count());
    for index in ran.iter().take(room) {
        is_shown[*index] = true;
    }
    let shown = || stages.iter().zip(&is_shown).filter(|(_, shown)| **shown);
    for (stage, _) in shown() {
        table.add_row(cells(stage));
    }
    let mut text = if shown().next().is_some() {
        lines(&table) + "\n"
    } else {
        String::new()
    };
    let with = |status: StageStatus| {
        let is_with = |stage: &&StageOutcome| stage.record.status == status;
        stages.iter().filter(is_with).count()
    };
    let left = [
        ("cached", with(StageStatus::Cached)),
        ("that ran in less time", ran.len().saturating_sub(room)),
        ("not started", with(StageStatus::Skipped)),
        ("not selected", with(StageStatus::NotSelected)),
    ];
    let left: Vec<String> = left
        .iter()
        .filter(|(_, number)| *number > 0)
        .map(|(word, number)| format!("{} {word}", count(*number as u64)))
        .collect();
    if !left.is_empty() {
        text.push_str(&format!("not listed: {}", left.join(", ")));
    }
    text.trim_end().to_owned()
}

fn cells(stage: &StageOutcome) -> [String; 5] {
    let record = &stage.record;
    let (time, state) = match record.status {
        // What the work took when it was done.
        StageStatus::Cached => (
            stage.work_seconds.map(duration).unwrap_or_default(),
            "cached",
        ),
        StageStatus::Done => (duration(record.seconds), "ran"),
        StageStatus::Failed => (duration(record.seconds), "failed"),
        StageStatus::Skipped => (String::new(), "not started"),
        StageStatus::NotSelected => (String::new(), "not selected"),
        StageStatus::Interrupted => (String::new(), "interrupted"),
    };
    [
        record.stage.clone(),
        record.kind.clone(),
        record.rows.map(count).unwrap_or_default(),
        time,
        format!("{state}{}{}", remarks(record), kept_quarantine(stage)),
    ]
}

/// Rows that an earlier run could not compute: they are missing in this run too.
fn kept_quarantine(stage: &StageOutcome) -> String {
    let rows = stage.outputs.get("quarantine").and_then(Artifact::rows);
    match rows {
        Some(rows) if rows > 0 && stage.record.parts.is_none() => {
            format!(" ({} rows in quarantine)", count(rows))
        }
        _ => String::new(),
    }
}

/// What else is to be known of how a stage ended: ` (3 parts reused, 1 computed; 2 rows in quarantine)`.
pub(crate) fn remarks(record: &StageRecord) -> String {
    let mut remarks = Vec::new();
    if let Some(parts) = &record.parts {
        if parts.reused > 0 && record.status != StageStatus::Cached {
            remarks.push(format!(
                "{} of {} parts reused",
                count(parts.reused),
                count(parts.total)
            ));
        }
        if parts.quarantined > 0 {
            remarks.push(format!("{} rows in quarantine", count(parts.quarantined)));
        }
    }
    if let Some(step) = record.resumed_from {
        remarks.push(format!("went on from step {}", count(step)));
    }
    if let (Some(tokens), StageStatus::Done) = (record.tokens, record.status)
        && tokens > 0
        && record.seconds > 0.0
    {
        let rate = (tokens as f64 / record.seconds).round() as u64;
        remarks.push(format!("{} tokens/s", count(rate)));
    }
    if let Some(run) = &record.pinned {
        remarks.push(format!("pinned to run {run}"));
    }
    if record.retries > 0 {
        remarks.push(format!("worker started again {} times", record.retries));
    }
    if remarks.is_empty() {
        String::new()
    } else {
        format!(" ({})", remarks.join(", "))
    }
}

/// `rise: done in 1m 12s (3 cached, 19 ran); run 2026...`.
pub(super) fn line(plan: &Plan, outcome: &RunOutcome) -> String {
    let with = |status: StageStatus| {
        let stages = outcome.stages.iter();
        stages.filter(|stage| stage.record.status == status).count()
    };
    let parts: u64 = outcome
        .stages
        .iter()
        .filter(|stage| stage.record.status != StageStatus::Cached)
        .filter_map(|stage| Some(stage.record.parts.as_ref()?.reused))
        .sum();
    let parts = match parts {
        0 => String::new(),
        parts => format!(", {} parts reused", count(parts)),
    };
    format!(
        "{}: {} in {} ({} cached, {} ran{parts}); run {}",
        plan.name,
        outcome.status.as_str(),
        duration(outcome.seconds),
        with(StageStatus::Cached),
        with(StageStatus::Done),
        outcome.run,
    )
}

/// Tells the causes of failures.
pub(super) fn report_failures(outcome: &RunOutcome) {
    let failed =
        || (outcome.stages.iter()).filter_map(|stage| Some((stage, stage.failure.as_ref()?)));
    for (stage, failure) in failed().take(FAILURES) {
        let StageRecord { stage, kind, .. } = &stage.record;
        eprintln!("\nerror: stage `{stage}` ({kind}) failed");
        for (depth, message) in failure.chain.iter().enumerate() {
            eprintln!("  {}{message}", if depth == 0 { "" } else { "caused by: " });
        }
        if !failure.log.is_empty() {
            eprintln!("  last lines of the worker:");
            for line in &failure.log {
                eprintln!("    {line}");
            }
        }
    }
    // A stage that could not be started has a reason and no failure.
    for StageOutcome { record, .. } in outcome
        .stages
        .iter()
        .filter(|stage| stage.failure.is_none())
    {
        if let Some(error) = &record.error {
            eprintln!(
                "\nerror: stage `{}` ({}): {error}",
                record.stage, record.kind
            );
        }
    }
    if failed().next().is_some() {
        eprintln!("help: the stages that finished are kept; the same command goes on from there\n");
    }
}

/// The end of a run for programs.
pub(super) fn json_lines(plan: &Plan, outcome: &RunOutcome, exit: Exit) {
    for stage in &outcome.stages {
        if let Some(failure) = &stage.failure {
            let fields = json!({
                "stage": stage.record.stage,
                "operator": stage.record.kind,
                "causes": failure.chain.get(1..),
                "worker_log": failure.log,
            });
            let message = failure.chain.first().map_or("failed", String::as_str);
            json_line("ERROR", message, fields);
        }
    }
    let fields = json!({ "run": outcome.run, "status": outcome.status.as_str(), "seconds": outcome.seconds });
    json_line("INFO", &line(plan, outcome), fields);
    if exit == Exit::Interrupted {
        let fields = json!({ "command": super::resume::command() });
        json_line("INFO", INTERRUPTED, fields);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use engine_runtime::RunStatus;
    use schemas::record::PartCounts;

    use super::*;

    fn stage(index: usize, status: StageStatus, seconds: f64) -> StageOutcome {
        StageOutcome {
            record: StageRecord {
                stage: format!("s{index:03}"),
                kind: "sql".to_owned(),
                status,
                seconds,
                ..StageRecord::default()
            },
            outputs: BTreeMap::new(),
            work_seconds: Some(seconds),
            failure: None,
        }
    }

    #[test]
    fn of_many_stages_only_those_that_matter_are_listed() {
        let mut stages: Vec<StageOutcome> = (0..100)
            .map(|index| stage(index, StageStatus::Cached, 1.0))
            .collect();
        stages[7] = stage(7, StageStatus::Failed, 2.0);
        stages[8] = stage(8, StageStatus::Skipped, 0.0);
        for (index, place) in stages.iter_mut().enumerate().take(90).skip(20) {
            *place = stage(index, StageStatus::Done, index as f64);
        }
        let outcome = RunOutcome {
            run: "r".to_owned(),
            status: RunStatus::Failed,
            seconds: 1.0,
            stages,
        };
        let text = table(&outcome);
        assert!(text.contains("s007") && text.contains("s089"), "{text}");
        assert!(!text.contains("s020") && !text.contains("s099"), "{text}");
        assert!(
            text.ends_with("not listed: 28 cached, 11 that ran in less time, 1 not started"),
            "{text}"
        );
    }

    #[test]
    fn parts_and_quarantine_are_told() {
        let record = StageRecord {
            status: StageStatus::Done,
            parts: Some(PartCounts {
                total: 8,
                reused: 3,
                computed: 5,
                rows: 100,
                quarantined: 2,
            }),
            ..StageRecord::default()
        };
        assert_eq!(
            remarks(&record),
            " (3 of 8 parts reused, 2 rows in quarantine)"
        );
        assert_eq!(remarks(&StageRecord::default()), "");
    }
}
