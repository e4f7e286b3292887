//! filter-by-pass-rate: splits prompts by how often their rollouts are right: always, sometimes, never, or by bands of the
//! user's own.
//!
//! Decided on two integers, usable and correct samples, never on a rounded rate. Every prompt goes to one of these ports:
//! what has too few usable samples goes to `undecided`, what is in no band to `others`. `more` is beside them: the prompts whose
//! pass rate is not known well enough yet. Prompts keep their order; `pass_rates` has a row for every prompt with a usable
//! sample, in the order of the verdicts.

mod bands;
mod beta;
mod posterior;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, LargeStringArray, RecordBatch, UInt32Array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageEvent, StageIo,
};
use engine_query::{Order, QuerySession, conform};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

pub use bands::Band;
use bands::Bands;
pub(crate) use bands::is_port_name;
use beta::Interval;
use posterior::Intervals;
pub use posterior::Posterior;

use crate::fraction::Fraction;
use crate::judged::judgement;
use crate::prompt_index::{Lookup, PromptIndex, texts};

/// Prompts with fewer usable samples than asked.
const UNDECIDED: &str = "undecided";
/// Counts and rates.
const PASS_RATES: &str = "pass_rates";
/// Prompts that another stage should sample more.
const MORE: &str = "more";
/// Rows of a batch that is written.
const BATCH_ROWS: usize = 8192;

/// How prompts are split by pass rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FilterByPassRate {
    /// Usable samples that a prompt must have to be decided on; 1 when left out. The others go to the port `undecided`.
    #[serde(default)]
    pub min_samples: Option<u32>,
    /// Bands of pass rates, each a port of that name, in the place of `solved`, `partial` and `failed`. They must not overlap;
    /// prompts in none of them go to the port `others`.
    #[serde(default)]
    pub bands: Option<BTreeMap<String, Band>>,
    /// What is known of each prompt's pass rate after all samples of all inputs, as a Beta distribution. Gives `pass_rates` the
    /// columns `posterior_mean`, `posterior_low` and `posterior_high`.
    #[serde(default)]
    pub posterior: Option<Posterior>,
}

/// What is counted of a prompt.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    samples: u32,
    correct: u32,
}

impl OperatorKind for FilterByPassRate {
    const KIND: &'static str = "filter-by-pass-rate";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str =
        "splits prompts into solved, partial and failed, or into bands, by exact counts";
}

impl OperatorConfig for FilterByPassRate {
    fn ports(&self) -> Ports {
        let bands = self.bands();
        let mut outputs = bands.ports();
        outputs.extend([UNDECIDED, PASS_RATES]);
        if self.asks_for_more() {
            outputs.push(MORE);
        }
        Ports::new(
            vec![
                InputPort::new(
                    "verdicts",
                    InputType::columns(TableName::Verdicts, &["prompt_id", "verdict"]),
                )
                .many(),
                InputPort::new("prompts", InputType::table(TableName::Prompts)),
            ],
            &outputs,
        )
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = Vec::new();
        if self.min_samples == Some(0) {
            let fault = Fault::at("wrong-value", "min-samples", "`min-samples` is 0")
                .with_help("write 1 or more, or leave it out");
            faults.push(fault);
        }
        if let Some(bands) = &self.bands {
            faults.extend(bands::faults(bands));
        }
        if let Some(posterior) = &self.posterior {
            faults.extend(posterior.faults());
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        // Ports of prompts keep every column of the prompts.
        let prompts = inputs.get("prompts").cloned().unwrap_or_default();
        let mut types: PortTypes = self
            .ports()
            .outputs
            .into_iter()
            .map(|port| (port.name, prompts.clone()))
            .collect();
        types.insert(
            PASS_RATES.to_owned(),
            vec![PortType::Table {
                table: TableName::PassRates,
                schema: self.rates_schema(),
            }],
        );
        Ok(types)
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let (index, counts) = counted(io)?;
        self.write_rates(&index, &counts, io)?;
        self.write_prompts(&index, &counts, io)
    }
}

/// Usable and correct samples of every prompt that has a usable one.
fn counted(io: &dyn StageIo) -> Result<(PromptIndex, Vec<Counts>), OperatorError> {
    let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
    session.register_port(io, "verdicts")?;
    let (mut index, mut lookup) = (PromptIndex::default(), Lookup::default());
    let mut counts: Vec<Counts> = Vec::new();
    for batch in session.stream(session.sql("SELECT prompt_id, verdict FROM verdicts")?) {
        if io.is_cancelled() {
            return Err(OperatorError::Interrupted);
        }
        let batch = batch?;
        let ids = texts(&batch, "prompt_id", "verdicts")?;
        let verdicts = texts(&batch, "verdict", "verdicts")?;
        for row in 0..batch.num_rows() {
            let Some(is_correct) = judgement(verdicts.value(row)) else {
                continue;
            };
            let number = lookup.insert(&mut index, ids.value(row)) as usize;
            if number == counts.len() {
                counts.push(Counts::default());
            }
            counts[number].samples += 1;
            counts[number].correct += u32::from(is_correct);
        }
    }
    Ok((index, counts))
}

impl FilterByPassRate {
    fn bands(&self) -> Bands<'_> {
        match &self.bands {
            Some(bands) => Bands::Named(bands),
            None => Bands::Standard,
        }
    }

    fn asks_for_more(&self) -> bool {
        self.posterior
            .is_some_and(|posterior| posterior.more_if_wider_than.is_some())
    }

    fn rates_schema(&self) -> SchemaRef {
        let schema = TableName::PassRates.schema();
        if self.posterior.is_none() {
            return schema;
        }
        let added = ["posterior_mean", "posterior_low", "posterior_high"];
        let added = added.map(|name| Arc::new(Field::new(name, DataType::Float64, false)));
        let fields: Vec<Arc<Field>> = schema.fields().iter().cloned().chain(added).collect();
        Arc::new(Schema::new(fields))
    }

    fn write_rates(
        &self,
        index: &PromptIndex,
        counts: &[Counts],
        io: &mut dyn StageIo,
    ) -> Result<(), OperatorError> {
        let schema = self.rates_schema();
        let mut intervals = Intervals::new(self.posterior);
        // An empty table is written too.
        for start in (0..counts.len().max(1)).step_by(BATCH_ROWS) {
            let chunk = &counts[start..(start + BATCH_ROWS).min(counts.len())];
            let ids = (start as u32..).take(chunk.len()).map(|row| index.id(row));
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(LargeStringArray::from_iter_values(ids)),
                Arc::new(UInt32Array::from_iter_values(
                    chunk.iter().map(|counts| counts.samples),
                )),
                Arc::new(UInt32Array::from_iter_values(
                    chunk.iter().map(|counts| counts.correct),
                )),
                floats(chunk, |counts| {
                    f64::from(counts.correct) / f64::from(counts.samples)
                }),
            ];
            if self.posterior.is_some() {
                let known: Vec<Interval> =
                    chunk.iter().map(|counts| intervals.get(*counts)).collect();
                columns.extend([
                    floats(&known, |interval| interval.mean),
                    floats(&known, |interval| interval.low),
                    floats(&known, |interval| interval.high),
                ]);
            }
            io.write(
                PASS_RATES,
                RecordBatch::try_new(Arc::clone(&schema), columns)?,
            )?;
        }
        Ok(())
    }

    fn write_prompts(
        &self,
        index: &PromptIndex,
        counts: &[Counts],
        io: &mut dyn StageIo,
    ) -> Result<(), OperatorError> {
        let session = QuerySession::with_scratch(Order::Repeatable, io.scratch())?;
        session.register_port(io, "prompts")?;
        let schema = session.schema("prompts")?;
        let bands = self.bands();
        let mut ports = bands.ports();
        ports.push(UNDECIDED);
        let undecided = (ports.len() - 1) as u32;
        let width = self
            .posterior
            .and_then(|posterior| posterior.more_if_wider_than);
        let mut intervals = Intervals::new(self.posterior);
        let least = self.min_samples.unwrap_or(1);
        let mut left_out = 0_u64;
        for port in ports.iter().copied().chain(width.map(|_| MORE)) {
            io.write(port, RecordBatch::new_empty(Arc::clone(&schema)))?;
        }
        for batch in session.stream(session.sql("SELECT * FROM prompts")?) {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = conform(&batch?, &schema)?;
            let found: Vec<Counts> = texts(&batch, "prompt_id", "prompts")?
                .iter()
                .flatten()
                .map(|id| {
                    index
                        .get(id)
                        .map_or(Counts::default(), |number| counts[number as usize])
                })
                .collect();
            let places: Vec<u32> = found
                .iter()
                .map(|counts| {
                    if counts.samples < least {
                        undecided
                    } else {
                        bands.place(counts.correct, counts.samples) as u32
                    }
                })
                .collect();
            left_out += places.iter().filter(|place| **place == undecided).count() as u64;
            for (place, port) in (0..).zip(&ports) {
                write_rows(&batch, places.iter().map(|found| *found == place), port, io)?;
            }
            if let Some(width) = width {
                let wide = found.iter().map(|counts| {
                    let known = intervals.get(*counts);
                    known.high - known.low > width
                });
                write_rows(&batch, wide, MORE, io)?;
            }
        }
        if left_out > 0 {
            let message = format!(
                "{left_out} prompts have fewer than {least} usable samples and go to `{UNDECIDED}`"
            );
            io.event(StageEvent::Warning(message));
        }
        Ok(())
    }
}

/// Writes the rows for which the flag is set.
fn write_rows(
    batch: &RecordBatch,
    flags: impl Iterator<Item = bool>,
    port: &str,
    io: &mut dyn StageIo,
) -> Result<(), OperatorError> {
    let mask = BooleanArray::from(flags.collect::<Vec<bool>>());
    if mask.true_count() == 0 {
        return Ok(());
    }
    io.write(port, filter_record_batch(batch, &mask)?)
}

fn floats<T>(values: &[T], number: impl Fn(&T) -> f64) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(values.iter().map(number)))
}

#[cfg(test)]
mod tests;
