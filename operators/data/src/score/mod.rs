//! score: turns verdicts into rewards, with every part of a reward in a column of its own, and on request the place and
//! the advantage of each rollout among those of its prompt.
//!
//! Rollouts without a judgement (`timed-out`, `failed`) get no row: they are masked, not worth 0. Reads rollouts and
//! prompts only where a part needs them; their texts are measured before anything is joined or sorted.

mod aligned;
mod config;
mod functions;
mod groups;
mod order;
mod plain;
mod rewards;
mod sources;

use std::sync::Arc;

use arrow::array::{AsArray, LargeStringArray, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt32Type};
use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageIo,
};
use engine_query::{Order, QuerySession};
use schemas::TableName;
use serde_json::json;

pub use config::Score;

use aligned::Aligned;
use functions::{joined_function, measure_function};
use groups::Groups;
use order::Names;
use plain::Plain;
use rewards::rewards;
use sources::Sources;

impl OperatorKind for Score {
    const KIND: &'static str = "score";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "turns verdicts into rewards with named parts";
}

impl OperatorConfig for Score {
    fn ports(&self) -> Ports {
        let verdicts = ["prompt_id", "sample", "verdict", "format_ok"];
        let port = |name, table, columns: &[&str]| {
            InputPort::new(name, InputType::columns(table, columns))
        };
        let mut inputs = vec![port("verdicts", TableName::Verdicts, &verdicts)];
        let has_sql = !self.sql.is_empty();
        let needed = self.rollout_columns();
        // Whether they must be there is said in words of the part that needs them.
        if has_sql || !needed.is_empty() {
            let columns: Vec<&str> = ["prompt_id", "sample"].into_iter().chain(needed).collect();
            inputs.push(port("rollouts", TableName::Rollouts, &columns).optional());
        }
        if has_sql {
            inputs.push(port("prompts", TableName::Prompts, &["prompt_id"]).optional());
        }
        Ports::new(inputs, &["scores"])
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let mut faults = self.faults();
        let schema = |port| match inputs.get(port).and_then(|types| types.first()) {
            Some(PortType::Table { schema, .. }) => Some(Arc::clone(schema)),
            _ => None,
        };
        let verdicts = schema("verdicts").unwrap_or_else(|| TableName::Verdicts.schema());
        if let Err(more) = Sources::new(self, &verdicts, schema("rollouts"), schema("prompts")) {
            faults.extend(more);
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let table = TableName::Scores;
        let schema = self.schema();
        Ok(PortTypes::from([(
            "scores".to_owned(),
            vec![PortType::Table { table, schema }],
        )]))
    }

    /// What a SQL expression gives can change with the query engine.
    fn key_config(&self, canonical: &serde_json::Value, _inputs: &PortTypes) -> serde_json::Value {
        if self.sql.is_empty() {
            return canonical.clone();
        }
        json!({ "score": canonical, "datafusion": datafusion::DATAFUSION_VERSION })
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let sources = Arc::new(self.sources(io)?);
        let schema = sources.schema();
        if let Some(mut aligned) = Aligned::open(&sources, io)? {
            return self.write(&sources, io, &mut || {
                let batch = aligned.next()?;
                batch
                    .map(|batch| rewards(&sources, &schema, &batch))
                    .transpose()
            });
        }
        // Joins bring rows in any order, and groups must stand together. Otherwise rows stay in the order of the verdicts, which
        // takes one thread, and still less time than to sort them on all.
        let has_groups = !self.advantages.is_empty();
        let sorted = sources.joins() || (has_groups && !order::stand_together(io)?);
        if !sorted && let Some(mut plain) = Plain::open(&sources, io, !has_groups)? {
            return self.write(&sources, io, &mut || plain.next());
        }
        let order = if sorted {
            Order::Any
        } else {
            Order::Repeatable
        };
        let session = QuerySession::with_scratch(order, io.scratch())?;
        session.register_port(io, "verdicts")?;
        if sources.reads_rollouts() {
            session.register_port(io, "rollouts")?;
        }
        if sources.reads_prompts() {
            session.register_port(io, "prompts")?;
        }
        session.register_function(measure_function(&sources));
        session.register_function(joined_function(&sources));
        let mut rows = session.stream(session.sql(&sources.query(sorted))?);
        self.write(&sources, io, &mut || match rows.next() {
            Some(batch) => rewards(&sources, &schema, &batch?).map(Some),
            None => Ok(None),
        })
    }
}

/// Rows with their rewards, until there are no more.
type Rows<'a> = dyn FnMut() -> Result<Option<RecordBatch>, OperatorError> + 'a;

impl Score {
    /// What must be read of the tables that are connected.
    fn sources(&self, io: &dyn StageIo) -> Result<Sources, OperatorError> {
        let session = QuerySession::new(Order::Repeatable)?;
        let connected = io.input_ports();
        let schema = |port: &str| -> Result<Option<SchemaRef>, OperatorError> {
            if !connected.iter().any(|name| name == port) {
                return Ok(None);
            }
            session.register_port(io, port)?;
            Ok(Some(session.schema(port)?))
        };
        let verdicts = schema("verdicts")?
            .ok_or_else(|| OperatorError::Internal("verdicts are always connected".to_owned()))?;
        Sources::new(self, &verdicts, schema("rollouts")?, schema("prompts")?)
            .map_err(|faults| OperatorError::Data(faults[0].message.clone()))
    }

    fn write(
        &self,
        sources: &Sources,
        io: &mut dyn StageIo,
        next: &mut Rows<'_>,
    ) -> Result<(), OperatorError> {
        let must_be_unique = sources.joins() || !self.advantages.is_empty();
        let mut names = must_be_unique.then(Names::default);
        let mut groups = Groups::new(&self.advantages, io.scratch())?;
        let mut rows = 0;
        while let Some(batch) = next()? {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            if batch.num_rows() == 0 {
                continue;
            }
            rows += batch.num_rows();
            if let Some(names) = &mut names {
                names.check(&batch)?;
            }
            match &mut groups {
                None => io.write("scores", batch)?,
                Some(groups) => groups.take(batch, &mut |batch| io.write("scores", batch))?,
            }
        }
        if let Some(groups) = groups {
            groups.finish(&mut |batch| io.write("scores", batch))?;
        }
        if rows == 0 {
            io.write("scores", RecordBatch::new_empty(self.schema()))?;
        }
        Ok(())
    }

    /// Columns of the scores.
    fn schema(&self) -> SchemaRef {
        let parts = rewards_schema(&self.parts().part_names());
        let mut fields: Vec<FieldRef> = parts.fields().iter().cloned().collect();
        if !self.advantages.is_empty() {
            fields.extend(groups::fields(&self.advantages));
        }
        Arc::new(Schema::new(fields))
    }
}

/// The `scores` table with a column for each part.
fn rewards_schema(parts: &[String]) -> SchemaRef {
    let table = TableName::Scores.schema();
    let mut fields: Vec<FieldRef> = table.fields().iter().cloned().collect();
    for part in parts {
        let name = format!("reward_{part}");
        if table.field_with_name(&name).is_err() {
            fields.push(Arc::new(Field::new(name, DataType::Float64, false)));
        }
    }
    Arc::new(Schema::new(fields))
}

/// The columns that name a row.
fn names(batch: &RecordBatch) -> (&LargeStringArray, &UInt32Array) {
    (
        batch.column(0).as_string::<i64>(),
        batch.column(1).as_primitive::<UInt32Type>(),
    )
}

#[cfg(test)]
mod tests;
