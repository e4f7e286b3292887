//! Rows that go through programs, and configurations with mistakes.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, LargeStringArray,
    ListArray, StringArray, UInt32Array, new_null_array,
};
use arrow::datatypes::{DataType, Field, Float64Type, UInt32Type};
use engine_core::registry::canonical;
use engine_core::{FailedRow, map_whole};
use serde_json::json;

use super::*;
use crate::testing::{TestIo, text_values};

#[path = "tests/programs.rs"]
mod programs;

/// A program in the shell's language with outputs of one column.
fn shell(script: &str, column: &str, kind: &str) -> Exec {
    exec(json!({
        "command": ["/bin/sh", "-c", script],
        "rows": "one-to-one",
        "output": { "table": "rows", "columns": { column: kind } },
        "timeout-seconds": 60,
        "memory-mb": 1000,
    }))
}

fn exec(config: Value) -> Exec {
    serde_json::from_value(config).unwrap()
}

fn texts(values: &[&str]) -> RecordBatch {
    let array: ArrayRef = Arc::new(LargeStringArray::from_iter_values(values));
    batch(vec![("text", array)])
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), array.null_count() > 0))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

/// A stage's surroundings with a file that holds a stream of these rows.
fn with_stream(rows: &RecordBatch) -> TestIo {
    let io = TestIo::new();
    std::fs::write(io.root.join("stream"), stream_of(rows)).unwrap();
    io
}

fn stream_of(rows: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream::feed(rows, &mut bytes).unwrap();
    bytes
}

/// What a program makes of the rows of one part.
fn apply(config: &Exec, io: &TestIo, rows: &RecordBatch) -> Result<MapOutput, String> {
    let context = StageContext {
        stage: "test",
        seed: 0,
        root: &io.root,
        backend: None,
    };
    let task = config
        .start(&context, io)
        .map_err(|error| error.to_string())?;
    let part = MapPart {
        rows,
        first_row: 0,
        slices: &config.slices(),
    };
    task.apply(&part).map_err(|error| error.to_string())
}

fn rows_of(output: MapOutput) -> RecordBatch {
    output
        .slices
        .into_iter()
        .next()
        .unwrap()
        .remove("rows")
        .unwrap()
}

/// The message of a program that does not do what it should.
fn fault(script: &str) -> String {
    apply(
        &shell(script, "text", "text"),
        &TestIo::new(),
        &texts(&["a", "b"]),
    )
    .unwrap_err()
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

#[test]
fn rows_come_back_whatever_the_parts() {
    let all = ["a", "", "c\nd", "e"];
    let config = exec(json!({
        "command": ["cat"],
        "columns": ["text"],
        "keep": ["sample"],
        "rows": "one-to-one",
        "output": { "table": "rows", "columns": { "text": "text" } },
        "timeout-seconds": 60,
        "memory-mb": 1000,
    }));
    let samples: ArrayRef = Arc::new(UInt32Array::from_iter_values(0..4));
    let text: ArrayRef = Arc::new(LargeStringArray::from_iter_values(all));
    let unused: ArrayRef = Arc::new(BooleanArray::from(vec![true; 4]));
    let whole = batch(vec![
        ("unused", unused),
        ("sample", samples),
        ("text", text),
    ]);
    for parts in [
        vec![whole.clone()],
        vec![whole.slice(0, 1), whole.slice(1, 0), whole.slice(1, 3)],
    ] {
        let mut io = TestIo::new();
        io.input("rows", &parts);
        let context = StageContext {
            stage: "test",
            seed: 0,
            root: &io.root,
            backend: None,
        };
        let outputs = map_whole(&config, &context, &io).unwrap();
        let batches = &outputs["rows"];
        let out = arrow::compute::concat_batches(&batches[0].schema(), batches).unwrap();
        assert_eq!(text_values(&out, "text"), all);
        let kept = out.column_by_name("sample").unwrap();
        assert_eq!(kept.as_primitive::<UInt32Type>().values(), &[0, 1, 2, 3]);
        assert_eq!(out.num_columns(), 2);
    }
}

#[test]
fn a_part_that_is_larger_than_any_pipe_goes_through() {
    let line = "x".repeat(500);
    let rows = texts(&vec![line.as_str(); 60_000]);
    let config = shell("cat", "text", "text");
    let out = rows_of(apply(&config, &TestIo::new(), &rows).unwrap());
    assert_eq!(out.columns(), rows.columns());
}

#[test]
fn what_a_program_writes_gets_the_types_of_the_store() {
    let list = ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>([
        Some(vec![Some(1), Some(2)]),
        Some(vec![]),
    ]);
    let written = batch(vec![
        (
            "reward_format",
            Arc::new(Float64Array::from(vec![0.5, 0.0])) as ArrayRef,
        ),
        (
            "reward_accuracy",
            Arc::new(arrow::array::Float32Array::from(vec![1.0, 0.0])),
        ),
        ("reward", Arc::new(Float64Array::from(vec![1.5, 0.0]))),
        ("sample", Arc::new(Int64Array::from(vec![3, 4]))),
        ("prompt_id", Arc::new(StringArray::from(vec!["p", "q"]))),
        ("lengths", Arc::new(list)),
        ("note", new_null_array(&DataType::Null, 2)),
    ]);
    let config = exec(json!({
        "command": ["/bin/sh", "-c", "cat > /dev/null; cat stream"],
        "rows": "any",
        "output": { "table": "scores", "columns": {
            "prompt_id": "text", "sample": "integer", "reward": "number", "reward_accuracy": "number",
            "reward_format": "number", "lengths": "list of integer", "note": "text?",
        } },
        "timeout-seconds": 60,
        "memory-mb": 1000,
    }));
    let input = texts(&["only one row"]);
    let out = rows_of(apply(&config, &with_stream(&written), &input).unwrap());
    let planned = config
        .output_types(&PortTypes::from([(
            "rows".to_owned(),
            vec![PortType::Table {
                table: TableName::Rows,
                schema: input.schema(),
            }],
        )]))
        .unwrap();
    let PortType::Table { schema, table } = &planned["rows"][0] else {
        panic!("a table")
    };
    assert_eq!((*table, schema), (TableName::Scores, &out.schema()));
    let columns = TableName::Scores.schema();
    assert_eq!(
        &out.schema().fields()[..columns.fields().len()],
        &columns.fields()[..]
    );
    assert_eq!(out["sample"].as_primitive::<UInt32Type>().values(), &[3, 4]);
    assert_eq!(out["note"].null_count(), 2);

    let negative: ArrayRef = Arc::new(Int64Array::from(vec![-1, 0]));
    let mut columns = written.columns().to_vec();
    columns[3] = negative;
    let wrong = RecordBatch::try_new(written.schema(), columns).unwrap();
    let message = apply(&config, &with_stream(&wrong), &input).unwrap_err();
    assert_says(&message, &["`sample`", "-1"]);
}

#[test]
fn rows_that_could_not_be_computed_are_told_apart() {
    let written = batch(vec![
        (
            "value",
            Arc::new(Float64Array::from(vec![
                Some(1.0),
                None,
                Some(f64::NAN),
                Some(4.0),
            ])) as ArrayRef,
        ),
        (
            "error",
            Arc::new(StringArray::from(vec![
                None,
                Some("no answer"),
                None,
                Some(""),
            ])),
        ),
    ]);
    let mut config = shell("cat > /dev/null; cat stream", "value", "number");
    config.errors = true;
    config.keep = vec!["text".to_owned()];
    let output = apply(
        &config,
        &with_stream(&written),
        &texts(&["a", "b", "c", "d"]),
    )
    .unwrap();
    let failed = |row: usize, error: &str| FailedRow {
        row,
        error: error.to_owned(),
    };
    assert_eq!(
        output.failed,
        [
            failed(1, "no answer"),
            failed(2, "the number in column `value` is not finite")
        ]
    );
    let out = rows_of(output);
    assert_eq!(text_values(&out, "text"), ["a", "d"]);
    assert_eq!(
        out["value"].as_primitive::<Float64Type>().values(),
        &[1.0, 4.0]
    );

    config.errors = false;
    let message = apply(
        &config,
        &with_stream(&written),
        &texts(&["a", "b", "c", "d"]),
    )
    .unwrap_err();
    assert_says(&message, &["expected {value: number}", "error: Utf8"]);
}

#[test]
fn rows_that_are_not_as_declared_are_refused() {
    let value = |array: ArrayRef| batch(vec![("value", array)]);
    let mut config = shell("cat > /dev/null; cat stream", "value", "number");
    for (written, words) in [
        (
            value(Arc::new(Int32Array::from(vec![1, 2]))),
            vec!["expected {value: number}", "found {value: Int32}"],
        ),
        (
            value(Arc::new(Float64Array::from(vec![Some(1.0), None]))),
            vec!["null", "`value`", "row 1"],
        ),
        (
            value(Arc::new(Float64Array::from(vec![1.0]))),
            vec!["wrote 1 rows for 2", "one-to-one"],
        ),
        (
            texts(&["a", "b"]),
            vec!["expected {value: number}", "found {text: LargeUtf8}"],
        ),
    ] {
        let message = apply(&config, &with_stream(&written), &texts(&["a", "b"])).unwrap_err();
        assert_says(&message, &words);
        assert_says(&message, &["/bin/sh"]);
    }
    config.rows = RowsRule::Any;
    let infinite = value(Arc::new(Float64Array::from(vec![f64::INFINITY])));
    let message = apply(&config, &with_stream(&infinite), &texts(&["a"])).unwrap_err();
    assert_says(&message, &["not finite", "`value`"]);
}

#[test]
fn the_key_has_the_files_and_not_the_limits() {
    let io = TestIo::new();
    std::fs::write(io.root.join("reward.sh"), "cat").unwrap();
    let mut config = shell("", "text", "text");
    config.command = vec!["/bin/sh".to_owned(), "reward.sh".to_owned()];
    let faults = config.inspect(&io.root);
    assert_eq!(faults[0].path, ["command", "1"]);
    assert_says(&faults[0].message, &["`reward.sh`", "`files`"]);
    config.files = vec!["reward.sh".into()];
    assert_eq!(config.inspect(&io.root), []);
    let pointers: Vec<String> = config.externals().into_iter().map(|e| e.pointer).collect();
    assert_eq!(pointers, ["/files/0", "/command/1"]);
    assert!(apply(&config, &io, &texts(&["a"])).is_ok());

    let key = |config: &Exec| config.key_config(&canonical(config), &PortTypes::new());
    let mut other = config.clone();
    (other.timeout_seconds, other.memory_mb) = (1, 2);
    (other.output_mb, other.part_rows) = (Some(3), Some(4));
    assert_eq!(key(&other), key(&config));
    other.errors = true;
    assert_ne!(key(&other), key(&config));

    config.files = vec!["gone.sh".into()];
    assert_eq!(config.inspect(&io.root)[0].path, ["files", "0"]);
}

#[test]
fn mistakes_are_found_at_plan_time() {
    let input = PortTypes::from([(
        "rows".to_owned(),
        vec![PortType::table(TableName::Verdicts)],
    )]);
    let right = json!({
        "command": ["cat"], "rows": "one-to-one", "keep": ["prompt_id", "sample"],
        "output": { "table": "rows", "columns": { "value": "number" } },
        "timeout-seconds": 1, "memory-mb": 1,
    });
    assert!(exec(right.clone()).output_types(&input).is_ok());
    for (pointer, value, path, words) in [
        ("/command", json!([]), vec!["command"], "no program"),
        (
            "/timeout-seconds",
            json!(0),
            vec!["timeout-seconds"],
            "at least 1",
        ),
        (
            "/keep",
            json!(["promt_id"]),
            vec!["keep", "0"],
            "`promt_id`",
        ),
        ("/keep", json!(["value"]), vec!["keep", "0"], "`value`"),
        (
            "/keep",
            json!(["sample", "sample"]),
            vec!["keep", "1"],
            "twice",
        ),
        ("/rows", json!("any"), vec!["keep"], "needs rows"),
        (
            "/output/columns",
            json!({ "sample": "integer" }),
            vec!["output", "columns", "sample"],
            "kept and written",
        ),
        (
            "/output/table",
            json!("scores"),
            vec!["output", "table"],
            "`reward`",
        ),
        (
            "/output",
            json!({ "table": "scores", "columns": { "reward": "text", "reward_accuracy": "number", "reward_format": "number" } }),
            vec!["output", "columns", "reward"],
            "Float64",
        ),
        (
            "/output",
            json!({ "table": "scores", "columns": { "reward": "number?", "reward_accuracy": "number", "reward_format": "number" } }),
            vec!["output", "columns", "reward"],
            "never null",
        ),
    ] {
        let mut config = right.clone();
        *config.pointer_mut(pointer).unwrap() = value;
        let faults = exec(config).output_types(&input).unwrap_err();
        assert_eq!(faults[0].path, path, "{faults:?}");
        assert_says(&faults[0].message, &[words]);
    }
    let mut unknown = right.clone();
    unknown["columns"] = json!(["verdit"]);
    let faults = exec(unknown).output_types(&input).unwrap_err();
    assert_says(
        faults[0].help.as_deref().unwrap(),
        &["did you mean `verdict`"],
    );
    let mut none = right;
    (none["keep"], none["output"]["columns"]) = (json!([]), json!({}));
    assert_eq!(
        exec(none).output_types(&input).unwrap_err()[0].path,
        ["output"]
    );
}
