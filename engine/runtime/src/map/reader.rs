//! Reads the rows of a map stage and cuts them into chunks.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::map::project;
use engine_core::operator::StageView as _;
use engine_core::{Artifact, InputType, MapOperator, OperatorError, StageContext};
use engine_store::{Chunk, Chunker, row_hashes};

use super::driver::Driver;
use super::key::declared;
use crate::io::StoreIo;

/// Rows of the whole input, where they are known beforehand.
pub(super) fn total_rows(
    operator: &dyn MapOperator,
    context: &StageContext<'_>,
    io: &StoreIo<'_>,
) -> Option<u64> {
    match operator.rows_port() {
        Some(port) => io.inputs(port).iter().map(Artifact::rows).sum(),
        None => operator.outside_total(context),
    }
}

impl Driver<'_> {
    /// Hands over every chunk, until there is none or nobody wants more; says whether it was all.
    pub(super) fn read_chunks(
        &self,
        mut hand_over: impl FnMut(Chunk) -> bool,
    ) -> Result<bool, OperatorError> {
        let mut schema = None;
        let columns = self.operator.columns();
        let reader = match self.operator.rows_port() {
            Some(port) => {
                schema = self.declared_schema(port);
                let names = declared(self.config, port).or_else(|| columns.clone());
                self.io.read_columns(port, names.as_deref())?
            }
            None => self.operator.outside_rows(self.context)?,
        };
        let mut chunker = Chunker::new(self.operator.part_size());
        for batch in reader {
            if self.is_ended() {
                return Ok(false);
            }
            let batch = match (&schema, &columns) {
                (Some(schema), _) => in_order(&batch?, schema)?,
                (None, Some(columns)) => project(&batch?, columns)?,
                (None, None) => batch?,
            };
            let hashes = row_hashes(&batch)?;
            for chunk in chunker.push(&batch, &hashes)? {
                if !hand_over(chunk) {
                    return Ok(false);
                }
            }
        }
        Ok(chunker.finish()?.is_none_or(hand_over))
    }

    /// The declared columns of an input port. Nulls are let through: the parts of several datasets may differ in that.
    fn declared_schema(&self, port: &str) -> Option<SchemaRef> {
        let ports = self.config.ports();
        let port = ports.inputs.into_iter().find(|input| input.name == port)?;
        let InputType::Columns(schema) = port.accepts else {
            return None;
        };
        let fields = schema.fields().iter();
        let fields: Vec<Field> = fields
            .map(|field| field.as_ref().clone().with_nullable(true))
            .collect();
        Some(Arc::new(Schema::new(fields)))
    }
}

/// The columns as they are declared, in that order.
fn in_order(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, OperatorError> {
    let columns = schema.fields().iter().map(|field| {
        batch.column_by_name(field.name()).cloned().ok_or_else(|| {
            OperatorError::Internal(format!("a planned input has no column `{}`", field.name()))
        })
    });
    Ok(RecordBatch::try_new(
        SchemaRef::clone(schema),
        columns.collect::<Result<_, _>>()?,
    )?)
}
