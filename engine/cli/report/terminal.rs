//! The report as tables for a terminal.

use super::findings::{Accuracy, Findings, Histogram};
use crate::text::{count, lines, table};

/// Width of the longest bar of a histogram.
const BAR: u64 = 40;

/// All tables, apart by empty lines.
pub(super) fn summary(findings: &Findings) -> String {
    let mut sections = Vec::new();
    if !findings.evaluations.is_empty() {
        sections.push(accuracy(findings));
    }
    sections.extend(
        findings
            .pass_rates
            .iter()
            .map(|(stage, histogram)| pass_rates(stage, histogram)),
    );
    if !findings.examples.is_empty() {
        sections.push(examples(findings));
    }
    sections.join("\n\n")
}

fn accuracy(findings: &Findings) -> String {
    let mut header = vec!["accuracy (95 % interval)"];
    header.extend(findings.evaluations.iter().map(|(stage, _)| stage.as_str()));
    let right: Vec<usize> = (1..header.len()).collect();
    let mut table = table(&header, &right);
    for category in categories(findings) {
        let mut cells = vec![category.clone()];
        cells.extend(
            findings
                .evaluations
                .iter()
                .map(|(_, rows)| cell(rows, &category)),
        );
        table.add_row(cells);
    }
    lines(&table)
}

/// Every category in the order of first appearance, the whole set last.
pub(super) fn categories(findings: &Findings) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in findings.evaluations.iter().flat_map(|(_, rows)| rows) {
        if !names.contains(&row.category) {
            names.push(row.category.clone());
        }
    }
    names.sort_by_key(|name| name == "all");
    names
}

/// `63.2 % (59.9-66.4)`.
pub(super) fn cell(rows: &[Accuracy], category: &str) -> String {
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    rows.iter()
        .find(|row| row.category == category)
        .map(|row| {
            format!(
                "{} % ({}-{})",
                percent(row.accuracy),
                percent(row.low),
                percent(row.high)
            )
        })
        .unwrap_or_default()
}

fn pass_rates(stage: &str, histogram: &Histogram) -> String {
    let bars = histogram.bars();
    let longest = bars.into_iter().max().unwrap_or(0).max(1);
    let mut table = table(&[&format!("pass rate ({stage})"), "prompts", ""], &[1]);
    for (name, height) in Histogram::BARS.into_iter().zip(bars) {
        let length = (height * BAR).div_ceil(longest);
        table.add_row([
            name.to_owned(),
            count(height),
            "#".repeat(usize::try_from(length).unwrap_or(0)),
        ]);
    }
    format!("{}\n{}", lines(&table), split(histogram))
}

/// The three groups that a pipeline treats apart.
pub(super) fn split(histogram: &Histogram) -> String {
    format!(
        "never right: {}, sometimes: {}, always: {}",
        count(histogram.none),
        count(histogram.partial()),
        count(histogram.all)
    )
}

fn examples(findings: &Findings) -> String {
    let mut table = table(&["training examples", "origin", "number"], &[2]);
    for (stage, origins) in &findings.examples {
        if origins.is_empty() {
            table.add_row([stage.as_str(), "", "0"]);
        }
        for (origin, number) in origins {
            table.add_row([stage.as_str(), origin, &count(*number)]);
        }
    }
    lines(&table)
}
