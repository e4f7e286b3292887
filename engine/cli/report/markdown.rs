//! The report as Markdown, with links to its plots.

use std::fmt::Write as _;

use super::findings::{Findings, Histogram};
use super::plot::Plot;
use super::terminal::{categories, cell, split};

/// The whole file.
pub(super) fn report(findings: &Findings, plots: &[Plot]) -> String {
    let mut text = format!("# Report of `{}`\n", findings.pipeline);
    if !findings.evaluations.is_empty() {
        text.push_str("\n## Accuracy\n\nShare of correct answers, with 95 % Wilson intervals.\n\n");
        accuracy(&mut text, findings);
    }
    for (stage, histogram) in &findings.pass_rates {
        line(
            &mut text,
            format!("\n## Pass rates of `{stage}`\n\n{}\n", split(histogram)),
        );
        row(&mut text, Histogram::BARS.map(str::to_owned));
        row(&mut text, Histogram::BARS.map(|_| "---:".to_owned()));
        row(&mut text, histogram.bars().map(|height| height.to_string()));
        show(
            &mut text,
            plots
                .iter()
                .filter(|plot| plot.stage == *stage && plot.is_histogram),
        );
    }
    if !findings.examples.is_empty() {
        text.push_str(
            "\n## Training examples\n\n| stage | origin | number |\n| --- | --- | ---: |\n",
        );
        for (stage, origins) in &findings.examples {
            for (origin, number) in origins {
                row(
                    &mut text,
                    [stage.clone(), origin.clone(), number.to_string()],
                );
            }
        }
    }
    let curves: Vec<&Plot> = plots.iter().filter(|plot| !plot.is_histogram).collect();
    if !curves.is_empty() {
        text.push_str("\n## Training\n");
        show(&mut text, curves.into_iter());
    }
    text
}

fn accuracy(text: &mut String, findings: &Findings) {
    let stages = findings
        .evaluations
        .iter()
        .map(|(stage, _)| format!("`{stage}`"));
    row(text, std::iter::once("category".to_owned()).chain(stages));
    row(
        text,
        std::iter::once("---")
            .chain(findings.evaluations.iter().map(|_| "---:"))
            .map(str::to_owned),
    );
    for category in categories(findings) {
        let cells = findings
            .evaluations
            .iter()
            .map(|(_, rows)| cell(rows, &category));
        row(text, std::iter::once(category.clone()).chain(cells));
    }
    let sizes = findings.evaluations.iter().map(|(_, rows)| {
        rows.iter()
            .find(|row| row.category == "all")
            .map_or_else(String::new, |row| row.samples.to_string())
    });
    row(text, std::iter::once("answers".to_owned()).chain(sizes));
}

fn show<'a>(text: &mut String, plots: impl Iterator<Item = &'a Plot>) {
    for plot in plots {
        line(text, format!("\n![{}]({})", plot.title, plot.file));
    }
}

fn row(text: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<String> = cells
        .into_iter()
        .map(|cell| cell.replace('|', "\\|"))
        .collect();
    line(text, format!("| {} |", cells.join(" | ")));
}

fn line(text: &mut String, line: String) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}
