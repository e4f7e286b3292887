//! Operators that exist to be run, and a laboratory that tells them when to fail and keeps what they computed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, AsArray as _, Int64Array, LargeStringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::operator::Family;
use engine_core::{
    FailedRow, Fault, InputPort, InputType, Joined, MapOperator, MapOutput, MapPart, MapTask,
    OperatorConfig, OperatorError, OperatorKind, PartSize, Placement, PortType, PortTypes, Ports,
    Registry, StageContext, StageIo, StageView,
};
use engine_plan::Plan;
use engine_store::Store;
use schemas::TableName;
use schemas::yaml::Document;
use serde::{Deserialize, Serialize};

use crate::{CancelToken, RunOptions, RunOutcome, Selection, WorkerOptions, execute};

/// What happens in the runs of one test.
#[derive(Debug, Default)]
pub(crate) struct Lab {
    /// Every row that was computed, with its slice.
    pub(crate) computed: Mutex<Vec<(i64, Range<u32>)>>,
    /// Rows that fail.
    pub(crate) failing: Mutex<BTreeSet<i64>>,
    /// Rows whose part fails altogether.
    pub(crate) broken: Mutex<BTreeSet<i64>>,
    /// Rows at which the operator panics.
    pub(crate) panicking: Mutex<BTreeSet<i64>>,
    /// Added to every result.
    pub(crate) offset: Mutex<i64>,
    /// How often the operator was started.
    pub(crate) starts: AtomicUsize,
    running: AtomicUsize,
    /// Most parts that were computed at a time.
    pub(crate) most_running: AtomicUsize,
    /// Asks the run to stop when this row is computed.
    pub(crate) cancel_at: Mutex<Option<(i64, CancelToken)>>,
}

static LABS: Mutex<BTreeMap<String, Arc<Lab>>> = Mutex::new(BTreeMap::new());

pub(crate) fn lab(name: &str) -> Arc<Lab> {
    Arc::clone(LABS.lock().unwrap().entry(name.to_owned()).or_default())
}

impl Lab {
    /// Numbers of the rows that were computed since the last time, sorted.
    pub(crate) fn take_computed(&self) -> Vec<i64> {
        let mut rows: Vec<i64> = std::mem::take(&mut *self.computed.lock().unwrap())
            .into_iter()
            .map(|(row, _)| row)
            .collect();
        rows.sort_unstable();
        rows
    }
}

fn numbers_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("prompt_id", DataType::LargeUtf8, false),
        Field::new("n", DataType::Int64, false),
    ]))
}

/// Rows with numbers: some ranges one after the other, as `[from, to]`.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Numbers {
    ranges: Vec<(i64, i64)>,
}

impl OperatorKind for Numbers {
    const KIND: &'static str = "numbers";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = false;
    const ABOUT: &'static str = "rows with numbers";
}

impl OperatorConfig for Numbers {
    fn ports(&self) -> Ports {
        Ports::new(Vec::new(), &["rows"])
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let table = PortType::Table {
            table: TableName::Rows,
            schema: numbers_schema(),
        };
        Ok([("rows".to_owned(), vec![table])].into())
    }

    fn run(&self, _context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        for (from, to) in &self.ranges {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(LargeStringArray::from_iter_values(
                    (*from..*to).map(|n| format!("p{n}")),
                )),
                Arc::new(Int64Array::from_iter_values(*from..*to)),
            ];
            io.write("rows", RecordBatch::try_new(numbers_schema(), columns)?)?;
        }
        Ok(())
    }
}

/// Squares of numbers, some samples of each.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Square {
    lab: String,
    #[serde(default = "one")]
    samples: u32,
    #[serde(default)]
    spelling: Option<String>,
}

fn one() -> u32 {
    1
}

impl OperatorKind for Square {
    const KIND: &'static str = "square";
    const VERSION: u32 = 1;
    const FAMILY: Family = Family::Map;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "squares of numbers";
}

impl Square {
    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("prompt_id", DataType::LargeUtf8, true),
            Field::new("sample", DataType::UInt32, false),
            Field::new("square", DataType::Int64, false),
        ]))
    }
}

impl OperatorConfig for Square {
    fn ports(&self) -> Ports {
        let names: InputType = InputType::Columns(Arc::new(
            numbers_schema().project(&[0, 1]).expect("two columns"),
        ));
        Ports::new(
            vec![
                InputPort::new("rows", names.clone()),
                InputPort::new("side", names).optional(),
            ],
            &["squares", "odd"],
        )
    }

    fn output_types(&self, _inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let table = PortType::Table {
            table: TableName::Rows,
            schema: Self::schema(),
        };
        Ok([
            ("squares".to_owned(), vec![table.clone()]),
            ("odd".to_owned(), vec![table]),
        ]
        .into())
    }

    fn as_map(&self) -> Option<&dyn MapOperator> {
        Some(self)
    }
}

impl MapOperator for Square {
    fn rows_port(&self) -> Option<&str> {
        Some("rows")
    }

    fn joined(&self) -> Vec<Joined> {
        vec![Joined {
            port: "side",
            column: "prompt_id",
        }]
    }

    fn part_size(&self) -> PartSize {
        PartSize {
            rows: 16,
            bytes: 1 << 20,
        }
    }

    fn part_config(&self, canonical: &serde_json::Value) -> serde_json::Value {
        let mut config = canonical.clone();
        config["samples"] = serde_json::Value::Null;
        config
    }

    fn slices(&self) -> Vec<Range<u32>> {
        let mut slices = Vec::new();
        let mut start = 0;
        while start < self.samples {
            let end = (start * 2).max(1).min(self.samples);
            slices.push(start..end);
            start = end;
        }
        slices
    }

    fn start<'a>(
        &'a self,
        _context: &'a StageContext<'a>,
        _view: &'a dyn StageView,
    ) -> Result<Box<dyn MapTask + 'a>, OperatorError> {
        let lab = lab(&self.lab);
        lab.starts.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Squares(lab)))
    }
}

struct Squares(Arc<Lab>);

impl MapTask for Squares {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let running = self.0.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_running.fetch_max(running, Ordering::SeqCst);
        let output = self.squares(part);
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        output
    }
}

impl Squares {
    fn squares(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let names: Vec<&str> = part
            .rows
            .schema_ref()
            .fields()
            .iter()
            .map(|f| f.name().as_str())
            .collect();
        assert_eq!(
            names,
            ["prompt_id", "n"],
            "the declared columns in their order"
        );
        let ids = part.rows.column(0).as_string::<i64>();
        let numbers = part.rows.column(1).as_primitive::<Int64Type>();
        let panicking = self.0.panicking.lock().unwrap().clone();
        if let Some(n) = numbers.values().iter().find(|n| panicking.contains(n)) {
            panic!("{n} makes it panic");
        }
        let (failing, broken) = (
            self.0.failing.lock().unwrap(),
            self.0.broken.lock().unwrap(),
        );
        if numbers.values().iter().any(|n| broken.contains(n)) {
            return Err(OperatorError::Data("the part is broken".to_owned()));
        }
        if let Some((row, token)) = &*self.0.cancel_at.lock().unwrap()
            && numbers.values().contains(row)
        {
            token.cancel();
        }
        let good: Vec<usize> = (0..numbers.len())
            .filter(|row| !failing.contains(&numbers.value(*row)))
            .collect();
        let failed = (0..numbers.len())
            .filter(|row| failing.contains(&numbers.value(*row)))
            .map(|row| FailedRow {
                row,
                error: format!("{} is unlucky", numbers.value(row)),
            })
            .collect();
        let offset = *self.0.offset.lock().unwrap();
        let mut slices = Vec::new();
        for slice in part.slices {
            let mut computed = self.0.computed.lock().unwrap();
            computed.extend(numbers.values().iter().map(|n| (*n, slice.clone())));
            let table = |keep: &dyn Fn(i64) -> bool| {
                let rows: Vec<(usize, u32)> = good
                    .iter()
                    .filter(|row| keep(numbers.value(**row)))
                    .flat_map(|row| slice.clone().map(move |sample| (*row, sample)))
                    .collect();
                let columns: Vec<ArrayRef> = vec![
                    Arc::new(LargeStringArray::from_iter_values(
                        rows.iter().map(|(row, _)| ids.value(*row)),
                    )),
                    Arc::new(UInt32Array::from_iter_values(
                        rows.iter().map(|(_, sample)| *sample),
                    )),
                    Arc::new(Int64Array::from_iter_values(rows.iter().map(|(row, _)| {
                        numbers.value(*row) * numbers.value(*row) + offset
                    }))),
                ];
                RecordBatch::try_new(Square::schema(), columns)
            };
            slices.push(BTreeMap::from([
                ("squares".to_owned(), table(&|_| true)?),
                ("odd".to_owned(), table(&|n| n % 2 != 0)?),
            ]));
        }
        Ok(MapOutput {
            slices,
            failed,
            tokens: 0,
        })
    }
}

pub(crate) fn options(selection: Selection) -> RunOptions {
    RunOptions {
        root: ".".into(),
        version: "0.0.0".to_owned(),
        engine_slots: 2,
        worker_slots: 1,
        threads: 4,
        device: "cpu".to_owned(),
        worker: WorkerOptions::new("no-worker".into()),
        memory_budget: 1 << 20,
        checkpoint_every: std::time::Duration::ZERO,
        selection,
    }
}

pub(crate) fn plan(stages: &str) -> Arc<Plan> {
    let mut registry = Registry::default();
    registry.register::<Numbers>();
    registry.register::<Square>();
    let text = format!("version: 1\nname: test\nseed: 1\nstages:\n{stages}");
    let document = Document::new("test.yaml", text);
    match engine_plan::plan(&document, &registry) {
        Ok(plan) => Arc::new(plan),
        Err(problems) => panic!("{problems:?}"),
    }
}

/// Numbers of a range and their squares; `more` goes into the stage `squares`, `options` into its operator.
pub(crate) fn squares(ranges: &str, lab: &str, options: &str, more: &str) -> Arc<Plan> {
    plan(&format!(
        "  numbers: {{ numbers: {{ ranges: {ranges} }} }}\n  squares:\n    inputs: {{ rows: numbers }}\n    square: {{ lab: {lab}{options} }}\n{more}"
    ))
}

pub(crate) fn run(plan: &Arc<Plan>, store: &Store) -> RunOutcome {
    run_with(plan, store, Selection::default())
}

pub(crate) fn run_with(plan: &Arc<Plan>, store: &Store, selection: Selection) -> RunOutcome {
    let cancel = CancelToken::default();
    execute(plan, store, &options(selection), &cancel, &mut ()).unwrap()
}

/// All rows of an output of a stage.
pub(crate) fn rows(outcome: &RunOutcome, stage: usize, port: &str, store: &Store) -> RecordBatch {
    let engine_core::Artifact::Dataset(dataset) = &outcome.stages[stage].outputs[port] else {
        panic!("a dataset")
    };
    let batches: Vec<RecordBatch> = store.read(dataset).map(Result::unwrap).collect();
    let schema = store.schema(dataset).unwrap();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

pub(crate) fn digest(outcome: &RunOutcome, stage: usize, port: &str) -> String {
    outcome.stages[stage].outputs[port].digest().to_string()
}
