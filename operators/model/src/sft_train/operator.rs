//! The loop of an `sft-train` stage.

use engine_core::event::StageEvent;
use engine_core::operator::Family;
use engine_core::policy::{LoadOptions, Loss, TrainSequence};
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageIo, seed,
};
use schemas::TableName;

use super::config::SftTrain;
use super::example_rows::{ExampleRow, read_examples};
use crate::advantage::token_mean_weight;
use crate::checkpoint;
use crate::epoch_order::EpochOrder;
use crate::metric_rows::metric_rows;
use crate::optimizer::train_options;
use crate::processor::PromptEncoder;
use crate::prompt_rows::PromptRow;
use crate::sampling::{check_cancelled, load_encoder};
use crate::schedule::learning_rate;
use crate::update::{Labelled, StepPlan, optimizer_step};

/// Prompts tokenised together while lengths are counted.
const ROWS_PER_COUNT: usize = 256;

/// Dropped examples named in the warning.
const NAMED_EXAMPLES: usize = 8;

impl OperatorKind for SftTrain {
    const KIND: &'static str = "sft-train";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Train;
    const PLACEMENT: Placement = Placement::Worker;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "trains a model to imitate examples";
}

impl OperatorConfig for SftTrain {
    fn ports(&self) -> Ports {
        let examples = InputType::columns(
            TableName::Examples,
            &["prompt_id", "messages", "text", "token_ids"],
        );
        let inputs = vec![
            InputPort::new("model", InputType::Model),
            InputPort::new("examples", examples).many(),
        ];
        Ports::new(inputs, &["model", "metrics"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(PortTypes::from([
            ("model".to_owned(), vec![PortType::Model]),
            (
                "metrics".to_owned(),
                vec![PortType::table(TableName::Metrics)],
            ),
        ]))
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let folder = io.model_folder("model")?;
        let mut encoder = load_encoder(&folder)?;
        let examples = read_examples(io, "examples", encoder.processor())?;
        let examples = self.within_limit(examples, &mut encoder, io)?;
        let training = train_options(
            &self.adamw,
            self.weight_decay,
            self.max_grad_norm,
            &self.freeze,
        );
        let options = LoadOptions {
            precision: self.precision,
            training: Some(training),
        };
        let mut policy = context.backend()?.load(&folder, &options)?;
        let mut order = EpochOrder::new(seed::derive(context.seed, "examples"), examples.len());
        let (steps, visits) = (
            self.total_steps(examples.len()),
            self.total_visits(examples.len()),
        );
        let (done, mut carried) = checkpoint::resume(&mut *policy, steps, io)?;
        for step in done + 1..=steps {
            check_cancelled(io)?;
            let start = (step - 1) * u64::from(self.sequences_per_step);
            let end = visits.min(start + u64::from(self.sequences_per_step));
            let batch: Vec<&ExampleRow> = (start..end)
                .map(|position| &examples[order.at(position)])
                .collect();
            let labelled = labelled(&batch, &mut encoder, io)?;
            let plan = StepPlan {
                step,
                loss: Loss::CrossEntropy,
                learning_rate: learning_rate(
                    self.schedule,
                    self.learning_rate,
                    u64::from(self.warmup_steps),
                    steps,
                    step - 1,
                ),
            };
            let outcome = optimizer_step(&mut *policy, labelled, &plan, io)?;
            let figures = [
                ("loss", outcome.report.loss),
                ("learning_rate", plan.learning_rate),
                ("grad_norm", outcome.grad_norm),
                ("tokens", outcome.report.tokens as f64),
            ];
            io.write("metrics", metric_rows(step, &figures)?)?;
            carried.tokens += outcome.report.tokens as u64;
            carried.note = format!("loss {:.3}", outcome.report.loss);
            checkpoint::end_step(&*policy, step, steps, &carried, io)?;
        }
        let saved = io.scratch().join("model");
        policy.save(&saved)?;
        io.write_model("model", &saved)
    }
}

impl SftTrain {
    /// The examples within `max-tokens`; the others are named in a warning.
    fn within_limit(
        &self,
        examples: Vec<ExampleRow>,
        encoder: &mut PromptEncoder,
        io: &dyn StageIo,
    ) -> Result<Vec<ExampleRow>, OperatorError> {
        let total = examples.len();
        if total == 0 {
            return Err(OperatorError::Data(
                "there are no examples to train on".to_owned(),
            ));
        }
        let Some(limit) = self.max_tokens else {
            return Ok(examples);
        };
        let mut fits = Vec::with_capacity(total);
        for chunk in examples.chunks(ROWS_PER_COUNT) {
            check_cancelled(io)?;
            let prompts: Vec<&PromptRow> = chunk.iter().map(|example| &example.prompt).collect();
            for (example, prompt) in chunk.iter().zip(encoder.encode(&prompts, io)?) {
                fits.push(prompt.token_ids.len() + example.completion.len() <= limit as usize);
            }
        }
        let mut dropped = Vec::new();
        let mut kept = Vec::with_capacity(total);
        for (example, fits) in examples.into_iter().zip(fits) {
            if fits {
                kept.push(example);
            } else {
                dropped.push(example.prompt.prompt_id);
            }
        }
        if kept.is_empty() {
            return Err(OperatorError::Data(format!(
                "all {total} examples are longer than `max-tokens: {limit}`"
            )));
        }
        if !dropped.is_empty() {
            let shown = dropped
                .iter()
                .take(NAMED_EXAMPLES)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let more = if dropped.len() > NAMED_EXAMPLES {
                ", ..."
            } else {
                ""
            };
            io.event(StageEvent::Warning(format!(
                "{} of {total} examples are longer than `max-tokens: {limit}` and were dropped: {shown}{more}",
                dropped.len()
            )));
        }
        Ok(kept)
    }
}

/// The sequences of a step, each token weighted so that the loss is the mean over the tokens of the step.
fn labelled(
    batch: &[&ExampleRow],
    encoder: &mut PromptEncoder,
    io: &dyn StageIo,
) -> Result<Vec<Labelled>, OperatorError> {
    let prompts: Vec<&PromptRow> = batch.iter().map(|example| &example.prompt).collect();
    let weight = token_mean_weight(batch.iter().map(|example| example.completion.len()).sum());
    let sequences = batch
        .iter()
        .zip(encoder.encode(&prompts, io)?)
        .map(|(example, prompt)| Labelled {
            prompt_id: example.prompt.prompt_id.clone(),
            sequence: TrainSequence {
                prompt,
                completion: example.completion.clone(),
                token_weight: weight,
                advantage: 0.0,
                sampler_logprobs: Vec::new(),
            },
        });
    Ok(sequences.collect())
}
