//! Worked solutions that stand in for an expert.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use engine_core::{InputType, OperatorError, StageView};
use schemas::tables::TEXT;

use crate::columns::text_column;
use crate::prompt_rows::PromptRow;

/// The columns that a table of worked solutions has.
pub(super) fn columns() -> InputType {
    let text = |name: &str| Field::new(name, TEXT, false);
    InputType::Columns(Arc::new(Schema::new(vec![text("prompt_id"), text("text")])))
}

/// Worked solutions.
pub(super) struct Worked {
    /// Those of a table by prompt, in its order; none where the prompts bring their own.
    by_prompt: Option<HashMap<String, Vec<String>>>,
    pub(super) keep: u32,
}

impl Worked {
    /// Reads the table, if one is connected.
    pub(super) fn read(view: &dyn StageView, port: &str, keep: u32) -> Result<Self, OperatorError> {
        if view.inputs(port).is_empty() {
            return Ok(Self {
                by_prompt: None,
                keep,
            });
        }
        let mut by_prompt: HashMap<String, Vec<String>> = HashMap::new();
        for batch in view.read(port)? {
            let batch = batch?;
            let (ids, texts) = (
                text_column(&batch, "prompt_id")?,
                text_column(&batch, "text")?,
            );
            for row in 0..batch.num_rows() {
                let texts_of = by_prompt.entry(ids.value(row).to_owned()).or_default();
                texts_of.push(texts.value(row).to_owned());
            }
        }
        Ok(Self {
            by_prompt: Some(by_prompt),
            keep,
        })
    }

    /// The solutions of a prompt.
    pub(super) fn of<'a>(&'a self, row: &'a PromptRow) -> &'a [String] {
        match &self.by_prompt {
            Some(by_prompt) => by_prompt.get(&row.prompt_id).map_or(&[], Vec::as_slice),
            None => row.solution.as_slice(),
        }
    }
}
