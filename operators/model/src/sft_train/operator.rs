//! The doors of an `sft-train` stage: ports, types, and what is read before the first step.

use std::path::Path;

use engine_core::event::StageEvent;
use engine_core::operator::Family;
use engine_core::policy::MemoryDemand;
use engine_core::{
    External, Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement,
    PortType, PortTypes, Ports, StageContext, StageIo, seed,
};
use operators_verifier::VerifyConfig;
use schemas::TableName;
use serde_json::Value;

use super::config::{Keep, SftTrain};
use super::dropped::{dropped_rows, dropped_schema, warning};
use super::evaluation::{self, Evaluator};
use super::example_rows::read_examples;
use super::sequences::{Dropped, Example, sequences};
use super::trainer::{BEST, Trainer};
use crate::checkpoint;
use crate::epoch_order::EpochOrder;
use crate::local_judge;
use crate::memory_note::plan_memory;
use crate::processor::PromptEncoder;
use crate::sampling::load_encoder;

impl OperatorKind for SftTrain {
    const KIND: &'static str = "sft-train";
    const VERSION: u32 = 3;
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
        let mut inputs = vec![
            InputPort::new("model", InputType::Model),
            InputPort::new("examples", examples).many(),
        ];
        let mut outputs = vec!["model", "metrics", "dropped"];
        if let Some(evaluation) = &self.evaluate {
            let prompts = InputType::columns(TableName::Prompts, &evaluation.columns());
            inputs.push(InputPort::new(evaluation::PORT, prompts));
            if evaluation.verify.needs_model() {
                inputs.push(InputPort::new(local_judge::PORT, InputType::Model));
            }
            outputs.push("rollouts");
        }
        if self.keep == Keep::Best {
            outputs.push("last");
        }
        if self.lora.is_some() {
            outputs.push("adapter");
        }
        Ports::new(inputs, &outputs)
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let faults = self.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let dropped = PortType::Table {
            table: TableName::Rows,
            schema: dropped_schema(),
        };
        let mut types = PortTypes::from([
            ("model".to_owned(), vec![PortType::Model]),
            (
                "metrics".to_owned(),
                vec![PortType::table(TableName::Metrics)],
            ),
            ("dropped".to_owned(), vec![dropped]),
        ]);
        if self.evaluate.is_some() {
            let rollouts = PortType::Table {
                table: TableName::Rollouts,
                schema: evaluation::rollouts_schema(),
            };
            types.insert("rollouts".to_owned(), vec![rollouts]);
        }
        let models = [
            ("last", self.keep == Keep::Best),
            ("adapter", self.lora.is_some()),
        ];
        for (port, _) in models.into_iter().filter(|(_, is_there)| *is_there) {
            types.insert(port.to_owned(), vec![PortType::Model]);
        }
        Ok(types)
    }

    fn externals(&self) -> Vec<External> {
        let verify = self.evaluate.iter().map(|evaluation| &evaluation.verify);
        verify
            .flat_map(|verify| verify.externals(&evaluation::VERIFY))
            .collect()
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        let verify = self.evaluate.iter().map(|evaluation| &evaluation.verify);
        verify
            .flat_map(|verify| verify.inspect(root, &evaluation::VERIFY))
            .collect()
    }

    fn key_config(&self, canonical: &Value, _inputs: &PortTypes) -> Value {
        let mut config = canonical.clone();
        if let Some(keys) = config.as_object_mut() {
            // Alarms cannot change what a stage that comes to its end gives.
            keys.remove("alarms");
        }
        if let Some(verify) = config.pointer_mut("/evaluate/verify") {
            VerifyConfig::retain_content(verify);
        }
        config
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let folder = io.model_folder("model")?;
        let mut encoder = load_encoder(&folder)?;
        let (examples, dropped) = self.examples(&mut encoder, io)?;
        let options = self.training_keys().load_options(context.seed);
        let mut policy = context.backend()?.load(&folder, &options)?;
        let mut evaluator = match &self.evaluate {
            Some(config) => Some(Evaluator::open(
                config,
                &mut encoder,
                &*policy,
                context,
                io,
            )?),
            None => None,
        };
        let (generate_tokens, generate_concurrent) =
            evaluator.as_ref().map_or((0, 0), Evaluator::demand);
        let demand = MemoryDemand {
            train_tokens: examples.iter().map(Example::tokens).max().unwrap_or(0),
            call_tokens: most_tokens(&examples, self.sequences_per_step as usize),
            generate_tokens,
            generate_concurrent,
        };
        let plan = plan_memory(&*policy, &demand, io)?;
        if let Some(evaluator) = &mut evaluator {
            evaluator.open_judge(&plan, context, io)?;
        }
        let steps = self.total_steps(examples.len());
        let (done, carried, files) = checkpoint::resume_with_files(&mut *policy, steps, io)?;
        if done == 0 {
            // A checkpoint has them already.
            let limit = self.max_tokens.unwrap_or(u32::MAX);
            io.write("dropped", dropped_rows(&dropped, limit)?)?;
        }
        let mut trainer = Trainer {
            config: self,
            encoder,
            policy,
            order: EpochOrder::new(seed::derive(context.seed, "examples"), examples.len()),
            steps,
            visits: self.total_visits(examples.len()),
            examples: &examples,
            evaluator,
            best: files.map(|files| files.join(BEST)),
            carried,
        };
        let trained = trainer.train(done, io);
        if let Some(evaluator) = &trainer.evaluator {
            evaluator.tell_account(io);
        }
        trained?;
        trainer.finish(io)
    }
}

impl SftTrain {
    /// The sequences to learn; answers that do not fit are told of and returned.
    fn examples(
        &self,
        encoder: &mut PromptEncoder,
        io: &dyn StageIo,
    ) -> Result<(Vec<Example>, Vec<Dropped>), OperatorError> {
        let rows = read_examples(io, "examples", self.turns, encoder.processor())?;
        if rows.is_empty() {
            return Err(OperatorError::Data(
                "there are no examples to train on".to_owned(),
            ));
        }
        let total: usize = rows.iter().map(|row| row.answers.len()).sum();
        let (examples, dropped) = sequences(rows, self.max_tokens, encoder, io)?;
        let limit = self.max_tokens.unwrap_or(u32::MAX);
        if examples.is_empty() {
            return Err(OperatorError::Data(format!(
                "all {total} examples are longer than `max-tokens: {limit}`"
            )));
        }
        if !dropped.is_empty() {
            io.event(StageEvent::Warning(warning(&dropped, total, limit)));
        }
        Ok((examples, dropped))
    }
}

/// Tokens of the longest examples that a step can have.
fn most_tokens(examples: &[Example], sequences: usize) -> usize {
    let mut lengths: Vec<usize> = examples.iter().map(Example::tokens).collect();
    lengths.sort_unstable_by(|one, other| other.cmp(one));
    lengths.iter().take(sequences).sum()
}
