//! The numbers of a report, read from the tables of a run.

use std::collections::BTreeMap;

use anyhow::Context as _;
use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, UInt32Type};
use engine_plan::Plan;
use engine_store::Store;
use schemas::TableName;

use super::Reported;

/// Metrics that are plotted, with the label of their axis.
pub(super) const CURVES: [(&str, &str); 3] = [
    ("reward", "mean reward"),
    ("completion_tokens", "mean tokens of a completion"),
    ("loss", "loss"),
];

/// All that a report shows.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Name of the pipeline.
    pub(super) pipeline: String,
    /// Accuracies, one entry for each `evaluations` table in the order of the pipeline.
    pub(super) evaluations: Vec<(String, Vec<Accuracy>)>,
    /// Pass rates, one entry for each `pass_rates` table.
    pub(super) pass_rates: Vec<(String, Histogram)>,
    /// Number of examples by origin, one entry for each `examples` table.
    pub(super) examples: Vec<(String, BTreeMap<String, u64>)>,
    /// Metrics over steps.
    pub(super) curves: Vec<Curve>,
}

/// A row of `evaluations`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Accuracy {
    pub(super) category: String,
    pub(super) samples: u32,
    pub(super) accuracy: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Prompts by pass rate: none, four open quarters, all. Decided on counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    pub(super) none: u64,
    pub(super) quarters: [u64; 4],
    pub(super) all: u64,
}

/// A metric over steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) stage: String,
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) points: Vec<(i64, f64)>,
}

impl Histogram {
    /// Names of the bars.
    pub(super) const BARS: [&'static str; 6] =
        ["0", "(0, 1/4)", "[1/4, 1/2)", "[1/2, 3/4)", "[3/4, 1)", "1"];

    /// Counts a prompt.
    pub(super) fn add(&mut self, correct: u32, samples: u32) {
        match correct {
            0 => self.none += 1,
            _ if correct >= samples => self.all += 1,
            // 4 * correct / samples is below 4 here, since correct is below samples.
            _ => self.quarters[(4 * u64::from(correct) / u64::from(samples)) as usize] += 1,
        }
    }

    /// Heights of the bars.
    pub(super) fn bars(&self) -> [u64; 6] {
        let [a, b, c, d] = self.quarters;
        [self.none, a, b, c, d, self.all]
    }

    /// Prompts that are sometimes right.
    pub(super) fn partial(&self) -> u64 {
        self.quarters.iter().sum()
    }
}

impl Findings {
    pub(super) fn read(
        plan: &Plan,
        store: &Store,
        tables: &[Reported<'_>],
    ) -> anyhow::Result<Self> {
        let mut findings = Self {
            pipeline: plan.name.clone(),
            ..Self::default()
        };
        for table in tables {
            let read = || {
                store
                    .read(table.dataset)
                    .map(|batch| batch.map_err(anyhow::Error::from))
                    .collect::<anyhow::Result<Vec<_>>>()
            };
            let batches = read().with_context(|| {
                format!(
                    "could not read {}.{} for the report",
                    table.stage, table.port
                )
            })?;
            findings.add(table.stage, table.dataset.table, &batches)?;
        }
        Ok(findings)
    }

    /// Adds the rows of one table.
    pub(super) fn add(
        &mut self,
        stage: &str,
        table: TableName,
        batches: &[RecordBatch],
    ) -> anyhow::Result<()> {
        let stage = stage.to_owned();
        match table {
            TableName::Evaluations => self.evaluations.push((stage, accuracies(batches)?)),
            TableName::PassRates => self.pass_rates.push((stage, histogram(batches)?)),
            TableName::Examples => self.examples.push((stage, origins(batches)?)),
            TableName::Metrics => self.curves.extend(curves(&stage, batches)?),
            _ => {}
        }
        Ok(())
    }
}

fn accuracies(batches: &[RecordBatch]) -> anyhow::Result<Vec<Accuracy>> {
    let mut rows = Vec::new();
    for batch in batches {
        let categories = text(batch, "category")?;
        let samples = column(batch, "samples")?
            .as_primitive_opt::<UInt32Type>()
            .context("`samples` holds counts")?;
        let float = |name| {
            column(batch, name)?
                .as_primitive_opt::<Float64Type>()
                .with_context(|| format!("`{name}` holds floats"))
        };
        let (accuracy, low, high) = (float("accuracy")?, float("low")?, float("high")?);
        rows.extend((0..batch.num_rows()).map(|row| Accuracy {
            category: categories.value(row).to_owned(),
            samples: samples.value(row),
            accuracy: accuracy.value(row),
            low: low.value(row),
            high: high.value(row),
        }));
    }
    Ok(rows)
}

fn histogram(batches: &[RecordBatch]) -> anyhow::Result<Histogram> {
    let mut histogram = Histogram::default();
    for batch in batches {
        let count = |name| {
            column(batch, name)?
                .as_primitive_opt::<UInt32Type>()
                .with_context(|| format!("`{name}` holds counts"))
        };
        let (samples, correct) = (count("samples")?, count("correct")?);
        for row in 0..batch.num_rows() {
            histogram.add(correct.value(row), samples.value(row));
        }
    }
    Ok(histogram)
}

fn origins(batches: &[RecordBatch]) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for batch in batches {
        let origins = text(batch, "origin")?;
        for origin in (0..origins.len()).map(|row| origins.value(row)) {
            *counts.entry(origin.to_owned()).or_default() += 1;
        }
    }
    Ok(counts)
}

fn curves(stage: &str, batches: &[RecordBatch]) -> anyhow::Result<Vec<Curve>> {
    let mut points: [Vec<(i64, f64)>; CURVES.len()] = Default::default();
    for batch in batches {
        let names = text(batch, "name")?;
        let steps = column(batch, "step")?
            .as_primitive_opt::<Int64Type>()
            .context("`step` holds integers")?;
        let values = column(batch, "value")?
            .as_primitive_opt::<Float64Type>()
            .context("`value` holds floats")?;
        for row in 0..batch.num_rows() {
            if let Some(curve) = CURVES
                .iter()
                .position(|(name, _)| *name == names.value(row))
            {
                points[curve].push((steps.value(row), values.value(row)));
            }
        }
    }
    let curves = CURVES.into_iter().zip(points);
    Ok(curves
        .filter(|(_, points)| points.len() > 1)
        .map(|((name, label), mut points)| {
            points.sort_by_key(|(step, _)| *step);
            Curve {
                stage: stage.to_owned(),
                name,
                label,
                points,
            }
        })
        .collect())
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> anyhow::Result<&'a dyn arrow::array::Array> {
    batch
        .column_by_name(name)
        .map(AsRef::as_ref)
        .with_context(|| format!("there is no column `{name}`"))
}

fn text<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> anyhow::Result<&'a arrow::array::LargeStringArray> {
    column(batch, name)?
        .as_string_opt::<i64>()
        .with_context(|| format!("column `{name}` holds text"))
}
