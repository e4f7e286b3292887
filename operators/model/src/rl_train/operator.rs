//! What the engine knows of an `rl-train` stage: its ports and types, what is in its key, how it runs.

use std::path::Path;

use engine_core::event::StageEvent;
use engine_core::operator::Family;
use engine_core::{
    External, Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement,
    PortType, PortTypes, Ports, StageContext, StageIo,
};
use schemas::TableName;
use serde_json::Value;

use super::config::RlTrain;
use super::trainer::Trainer;
use crate::local_judge;
use crate::prompt_rows::{PromptRow, read_prompts};

/// Prompts named in a warning.
const NAMED_PROMPTS: usize = 8;

impl OperatorKind for RlTrain {
    const KIND: &'static str = "rl-train";
    const VERSION: u32 = 3;
    const FAMILY: Family = Family::Train;
    const PLACEMENT: Placement = Placement::Worker;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "trains a model with rewards from verified answers";
}

impl OperatorConfig for RlTrain {
    fn ports(&self) -> Ports {
        let columns: &[&str] = if self.verify.needs_gold() {
            &["prompt_id", "messages", "answer"]
        } else {
            &["prompt_id", "messages"]
        };
        let mut inputs = vec![
            InputPort::new("prompts", InputType::columns(TableName::Prompts, columns)),
            InputPort::new("model", InputType::Model),
            InputPort::new("reference", InputType::Model).optional(),
        ];
        if self.verify.needs_model() {
            inputs.push(InputPort::new(local_judge::PORT, InputType::Model));
        }
        let outputs: &[&str] = if self.lora.is_some() {
            &["model", "metrics", "rollouts", "adapter"]
        } else {
            &["model", "metrics", "rollouts"]
        };
        Ports::new(inputs, outputs)
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let faults = self.faults(inputs);
        if !faults.is_empty() {
            return Err(faults);
        }
        let rollouts = PortType::Table {
            table: TableName::Rollouts,
            schema: self.rollouts_schema(),
        };
        let mut types = PortTypes::from([
            ("model".to_owned(), vec![PortType::Model]),
            (
                "metrics".to_owned(),
                vec![PortType::table(TableName::Metrics)],
            ),
            ("rollouts".to_owned(), vec![rollouts]),
        ]);
        if self.lora.is_some() {
            types.insert("adapter".to_owned(), vec![PortType::Model]);
        }
        Ok(types)
    }

    fn externals(&self) -> Vec<External> {
        self.verify.externals(&["verify"])
    }

    fn inspect(&self, root: &Path) -> Vec<Fault> {
        self.verify.inspect(root, &["verify"])
    }

    /// Without what cannot change a result.
    fn key_config(&self, canonical: &Value, _inputs: &PortTypes) -> Value {
        let mut config = canonical.clone();
        if let Some(keys) = config.as_object_mut() {
            keys.remove("alarms");
            if let Some(verify) = keys.get_mut("verify") {
                operators_verifier::VerifyConfig::retain_content(verify);
            }
        }
        config
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let rows = self.read(io)?;
        let (mut trainer, done) = Trainer::open(self, &rows, context, io)?;
        let trained = trainer.train(done, io);
        trainer.verifier.tell_account(io);
        trained?;
        trainer.finish(io)
    }
}

impl RlTrain {
    /// The prompts. Those whose gold answer nothing can equal are told of.
    fn read(&self, io: &dyn StageIo) -> Result<Vec<PromptRow>, OperatorError> {
        let rows = read_prompts(io, "prompts")?;
        let mut unparsed = Vec::new();
        for row in &rows {
            if self.verify.needs_gold() {
                row.gold()?;
            }
            if let Err(error) = self.verify.check_gold(row.answer.as_deref()) {
                unparsed.push(format!("{} ({error})", row.prompt_id));
            }
        }
        if !unparsed.is_empty() {
            let shown = unparsed
                .iter()
                .take(NAMED_PROMPTS)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            let message = format!(
                "{} prompts have an answer that nothing can equal and are never rewarded: {shown}",
                unparsed.len()
            );
            io.event(StageEvent::Warning(message));
        }
        let recipe = self.recipe();
        let wanted = self.prompts_per_round(&recipe.filter);
        if rows.len() < wanted {
            let key = if wanted == self.prompts_per_step as usize {
                "prompts-per-step"
            } else {
                "prompts-per-round"
            };
            let message = format!("{} prompts are fewer than `{key}: {wanted}`", rows.len());
            return Err(OperatorError::Data(message));
        }
        Ok(rows)
    }
}
