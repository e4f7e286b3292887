//! Keys of parts: what can change the rows of a part, and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow::record_batch::RecordBatch;
use engine_core::operator::StageView;
use engine_core::{
    Digest, InputType, MapOperator, OperatorConfig, OperatorError, RowsDigest, StageContext,
};
use serde_json::json;

use super::side::SideTable;
use crate::io::StoreIo;
use crate::stage::StageJob;

/// Makes the keys of a stage's parts.
#[derive(Debug)]
pub(super) struct PartKeys {
    base: Digest,
    sides: Vec<SideTable>,
}

impl PartKeys {
    /// Digests what all parts have in common and reads the side tables that are matched row by row.
    pub(super) fn read(
        config: &dyn OperatorConfig,
        operator: &dyn MapOperator,
        context: &StageContext<'_>,
        io: &StoreIo<'_>,
        job: &StageJob,
    ) -> Result<Self, OperatorError> {
        let joined = operator.joined();
        let is_row_by_row = |port: &str| {
            operator.rows_port() == Some(port) || joined.iter().any(|joined| joined.port == port)
        };
        let whole: BTreeMap<String, Vec<Digest>> = io
            .input_ports()
            .into_iter()
            .filter(|port| !is_row_by_row(port))
            .map(|port| {
                let digests = io.inputs(&port).iter();
                let digests = digests.map(|artifact| artifact.digest().clone()).collect();
                (port, digests)
            })
            .collect();
        let sides = joined
            .iter()
            .filter(|joined| !io.inputs(joined.port).is_empty())
            .map(|joined| {
                let rows =
                    io.read_columns(joined.port, declared(config, joined.port).as_deref())?;
                SideTable::read(joined.column, rows, || io.is_cancelled())
            })
            .collect::<Result<_, _>>()?;
        let mut material = json!({
            "config": operator.part_config(&job.config),
            "inputs": whole,
            "kind": job.kind,
            "version": job.version,
        });
        if job.uses_seed {
            material["seed"] = json!(context.seed);
        }
        let material = engine_core::registry::canonical(&material);
        Ok(Self {
            base: Digest::of(material.to_string().as_bytes()),
            sides,
        })
    }

    /// The key of each of some slices of some rows.
    pub(super) fn keys(
        &self,
        rows: &RecordBatch,
        digest: &RowsDigest,
        slices: &[Range<u32>],
    ) -> Result<Vec<Digest>, OperatorError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"metis-flow part 1\n");
        for text in [self.base.as_str(), digest.0.as_str()] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        for side in &self.sides {
            side.add_matches(rows, &mut hasher)?;
        }
        let keys = slices.iter().map(|slice| {
            let mut hasher = hasher.clone();
            hasher.update(&slice.start.to_le_bytes());
            hasher.update(&slice.end.to_le_bytes());
            Digest::from(hasher.finalize())
        });
        Ok(keys.collect())
    }
}

/// Names of the columns that an input port declares; none for a port that takes any table.
pub(super) fn declared(config: &dyn OperatorConfig, port: &str) -> Option<Vec<String>> {
    let ports = config.ports();
    let port = ports.inputs.into_iter().find(|input| input.name == port)?;
    match port.accepts {
        InputType::Columns(schema) => Some(
            schema
                .fields()
                .iter()
                .map(|field| field.name().clone())
                .collect(),
        ),
        InputType::AnyTable | InputType::Model => None,
    }
}
