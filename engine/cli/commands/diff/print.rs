//! A comparison for people.

use serde_json::Value;

use super::answers::{AnswerDiff, AnswersDiff};
use super::models::ModelDiff;
use super::rows::{RowChange, RowDiff, TableDiff};
use super::stages::{StageDiff, StagesDiff, What};
use super::statistics::PassRateChange;
use super::{Diff, ResultDiff};
use crate::text::{brief, count, lines, table};

/// Characters of a completion.
const TEXT_WIDTH: usize = 100;
/// Characters of a reason.
const REASON_WIDTH: usize = 160;
/// Characters of a value.
const VALUE_WIDTH: usize = 60;
/// Stages that are listed.
const STAGES: usize = 60;

pub(super) fn diff(diff: &Diff) {
    println!("A {}\nB {}", diff.a, diff.b);
    if let Some(runs) = &diff.runs {
        stages(runs);
    }
    for found in &diff.results {
        result(found, diff.runs.is_some());
    }
}

fn stages(diff: &StagesDiff) {
    let Some(first) = &diff.first else {
        println!("\nno difference: all {} stages are equal", diff.equal);
        return;
    };
    println!("\nfirst difference: stage `{first}`");
    if let Some(stage) = diff.stages.iter().find(|stage| stage.stage == *first) {
        if let Some(difference) = &stage.differs {
            println!("  {}", difference.field);
            let [a, b] = difference.values();
            println!("    A {a}\n    B {b}");
        }
        if stage.what == What::Result {
            println!(
                "  equal keys, and another result: one of them was made with --force or replay"
            );
        }
    }
    let mut printed = table(&["stage", "operator", "differs in"], &[]);
    for stage in diff.stages.iter().take(STAGES) {
        printed.add_row([stage.stage.as_str(), &stage.operator, &reason(stage)]);
    }
    println!("\n{}", lines(&printed));
    if diff.stages.len() > STAGES {
        println!("and {} more", diff.stages.len() - STAGES);
    }
    println!("{} differ, {} are equal", diff.stages.len(), diff.equal);
}

fn reason(stage: &StageDiff) -> String {
    let text = match (stage.what, &stage.differs) {
        (What::OnlyA, _) => return "only in A".to_owned(),
        (What::OnlyB, _) => return "only in B".to_owned(),
        (What::Unfinished, _) => return "has no result in one of them".to_owned(),
        (_, Some(difference)) if !stage.from.is_empty() => {
            format!(
                "{}, from {}",
                difference.subject(),
                stage.from.join(" and ")
            )
        }
        (_, Some(difference)) => difference.subject(),
        (_, None) => "the result alone".to_owned(),
    };
    if stage.outputs_differ {
        text
    } else {
        format!("{text}; the result is equal")
    }
}

fn result(result: &ResultDiff, with_title: bool) {
    if with_title {
        let stage = result.b.split('@').next().unwrap_or(&result.b);
        println!("\n--- {stage}");
    }
    if let Some(found) = &result.answers {
        answers(found);
    }
    for found in &result.tables {
        table_diff(found);
    }
    for found in &result.models {
        model(found);
    }
    if result.answers.is_none() && result.tables.is_empty() && result.models.is_empty() {
        println!("\nthe two have no output in common");
    }
}

fn answers(diff: &AnswersDiff) {
    println!(
        "\nanswers: {} in both, {} only in A, {} only in B",
        count(diff.both),
        count(diff.only_a),
        count(diff.only_b)
    );
    println!(
        "  right to wrong {}, wrong to right {}{}",
        count(diff.right_to_wrong),
        count(diff.wrong_to_right),
        match diff.masked {
            0 => String::new(),
            masked => format!(", without a usable verdict {}", count(masked)),
        }
    );
    if let Some(same) = diff.same_text {
        println!("  the same text in {}", count(same));
    }
    if let Some(change) = &diff.pass_rate {
        println!("  {}", pass_rate(change));
    }
    for row in &diff.rows {
        answer_diff(row);
    }
}

/// `pass rate 53.3 % -> 71.1 %: +17.8 points (95 % interval +14.6 to +21.0), over 900 prompts`.
fn pass_rate(change: &PassRateChange) -> String {
    let points = |share: f64| format!("{:+.1}", 100.0 * share);
    let interval = match (change.low, change.high) {
        (Some(low), Some(high)) => {
            format!(" (95 % interval {} to {})", points(low), points(high))
        }
        _ => String::new(),
    };
    format!(
        "pass rate {:.1} % -> {:.1} %: {} points{interval}, paired over {} prompts",
        100.0 * change.a,
        100.0 * change.b,
        points(change.change),
        count(change.prompts)
    )
}

fn answer_diff(row: &AnswerDiff) {
    let step = row
        .step
        .map(|step| format!(", step {step}"))
        .unwrap_or_default();
    let answer = row
        .answer
        .as_ref()
        .map(|answer| format!(", right answer {}", brief(answer, VALUE_WIDTH)))
        .unwrap_or_default();
    println!("\n{}{step}, sample {}{answer}", row.prompt_id, row.sample);
    let has_flipped = row.a.verdict != row.b.verdict;
    for (side, told) in [("A", &row.a), ("B", &row.b)] {
        let shown = |text: &Option<String>, mark: &str, width: usize| match text {
            Some(text) => format!("{mark}{}", brief(text, width)),
            None => String::new(),
        };
        let extracted = shown(&told.extracted, " ", VALUE_WIDTH);
        let text = shown(&told.text, "  | ", TEXT_WIDTH);
        println!("  {side} {:<8}{extracted}{text}", told.verdict);
        if let Some(reason) = told.reason.as_ref().filter(|_| has_flipped) {
            println!("      {}", brief(reason, REASON_WIDTH));
        }
    }
}

fn table_diff(diff: &TableDiff) {
    if diff.equal {
        println!(
            "\n{} ({}): equal, {} rows",
            diff.port,
            diff.table,
            count(diff.rows_b)
        );
        return;
    }
    println!(
        "\n{} ({}): {} rows in A, {} in B",
        diff.port,
        diff.table,
        count(diff.rows_a),
        count(diff.rows_b)
    );
    let by = match diff.key.as_slice() {
        [] => String::new(),
        key => format!(", by {}", key.join(", ")),
    };
    println!(
        "  {} changed, {} only in A, {} only in B{by}",
        count(diff.changed),
        count(diff.only_a),
        count(diff.only_b)
    );
    for column in &diff.columns {
        println!("  column {column}");
    }
    if diff.changed + diff.only_a + diff.only_b == 0 {
        println!("  the rows are the same, in another order or with other columns beside");
    }
    diff.examples.iter().for_each(row_diff);
}

fn row_diff(row: &RowDiff) {
    let key: Vec<String> = row
        .key
        .iter()
        .map(|(name, value)| format!("{name}={}", value_text(value)))
        .collect();
    match row.what {
        RowChange::Changed => println!("  * {}", key.join(" ")),
        RowChange::OnlyA => println!("  - {}", key.join(" ")),
        RowChange::OnlyB => println!("  + {}", key.join(" ")),
    }
    for (column, values) in &row.values {
        let (a, b) = (value_text(&values["a"]), value_text(&values["b"]));
        match row.what {
            RowChange::Changed => println!("      {column}: {a} -> {b}"),
            RowChange::OnlyA => println!("      {column}: {a}"),
            RowChange::OnlyB => println!("      {column}: {b}"),
        }
    }
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => brief(text, VALUE_WIDTH),
        other => brief(&other.to_string(), VALUE_WIDTH),
    }
}

fn model(diff: &ModelDiff) {
    if diff.equal {
        println!("\n{} (model): equal, {}", diff.port, &diff.digest_b[..12]);
        return;
    }
    println!(
        "\n{} (model): {} in A, {} in B",
        diff.port,
        &diff.digest_a[..12],
        &diff.digest_b[..12]
    );
    for file in &diff.files {
        println!("  {} {}", file.what, file.name);
    }
    if diff.tensors > 0 {
        println!(
            "  {} of {} tensors differ",
            diff.changed_tensors, diff.tensors
        );
    }
    for tensor in &diff.other_tensors {
        println!("  tensor {tensor}");
    }
    if !diff.largest.is_empty() {
        let mut printed = table(
            &["  largest change of a weight", "change", "largest weight"],
            &[1, 2],
        );
        for tensor in &diff.largest {
            printed.add_row([
                format!("  {}", tensor.name),
                format!("{:.3e}", tensor.largest),
                format!("{:.3e}", tensor.scale),
            ]);
        }
        println!("{}", lines(&printed));
    }
}
