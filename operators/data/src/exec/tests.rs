//! Programs of all kinds, most of them bad.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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
fn a_program_that_ends_badly_is_blamed_with_its_last_words() {
    assert_says(
        &fault("cat > /dev/null; echo 'no such module: rewards' >&2; exit 3"),
        &["exit code 3", "no such module: rewards", "/bin/sh -c"],
    );
    assert_says(&fault("kill -SEGV $$"), &["signal 11"]);
    assert_says(&fault("kill -KILL $$"), &["signal 9"]);
    let flood = fault(
        "cat > /dev/null; i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i >&2; done; exit 1",
    );
    assert_says(&flood, &["line 4981", "line 5000"]);
    assert!(!flood.contains("line 4980"), "{flood}");
    let mut config = shell("", "text", "text");
    config.command = vec!["no-such-program".to_owned(), "--fast".to_owned()];
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(
        &message,
        &["`no-such-program --fast`", "could not be started"],
    );
}

#[test]
fn what_is_no_stream_is_refused() {
    let stream = stream_of(&texts(&["a", "b"]));
    for (script, words) in [
        ("cat > /dev/null", ["wrote nothing", "Arrow stream"]),
        ("echo starting; cat", ["begins with", "starting"]),
        ("cat; echo all done", ["after the end", "all done"]),
        (
            "cat > /dev/null; head -c 100 stream",
            ["breaks off", "close the writer"],
        ),
    ] {
        let io = TestIo::new();
        std::fs::write(io.root.join("stream"), &stream).unwrap();
        let message = apply(&shell(script, "text", "text"), &io, &texts(&["a", "b"])).unwrap_err();
        assert_says(&message, &words);
    }
}

#[test]
fn no_damaged_stream_is_taken_for_a_whole_one() {
    let whole = stream_of(&texts(&["a", "b", "cc"]));
    for length in 0..whole.len() {
        assert!(
            stream::read(whole[..length].to_vec()).is_err(),
            "cut to {length} bytes"
        );
    }
    // Some bits are padding or text; the others must end in an error, whatever they claim.
    for position in 0..whole.len() {
        for bit in [0x01, 0x80] {
            let mut damaged = whole.clone();
            damaged[position] ^= bit;
            let _ = stream::read(damaged);
        }
    }
    assert_eq!(stream::read(whole).unwrap().batches[0].num_rows(), 3);
}

#[test]
fn a_program_that_does_not_read_its_rows_is_refused() {
    let line = "x".repeat(1000);
    let rows = texts(&vec![line.as_str(); 5000]);
    let io = with_stream(&rows);
    let message = apply(&shell("cat stream", "text", "text"), &io, &rows).unwrap_err();
    assert_says(&message, &["ended before it had read all rows"]);
}

#[test]
fn a_program_that_hangs_is_killed_with_all_that_it_started() {
    let mut config = shell(
        "sleep 1000 & echo $! > child; echo waiting >&2; wait",
        "text",
        "text",
    );
    config.timeout_seconds = 1;
    let io = TestIo::new();
    let message = apply(&config, &io, &texts(&["a"])).unwrap_err();
    assert_says(&message, &["within 1 s", "timeout-seconds", "waiting"]);
    assert_is_gone(&std::fs::read_to_string(io.root.join("child")).unwrap());
}

#[test]
fn what_a_program_leaves_behind_is_killed() {
    let io = TestIo::new();
    let script = "sleep 1000 > /dev/null 2>&1 < /dev/null & echo $! > child; cat";
    apply(&shell(script, "text", "text"), &io, &texts(&["a"])).unwrap();
    assert_is_gone(&std::fs::read_to_string(io.root.join("child")).unwrap());
}

#[test]
fn what_keeps_the_output_open_holds_nobody_up() {
    let io = TestIo::new();
    let message = apply(
        &shell("cat > /dev/null; sleep 1000 & ", "text", "text"),
        &io,
        &texts(&["a"]),
    )
    .unwrap_err();
    assert_says(&message, &["still held its standard output open"]);
}

#[test]
fn too_much_output_and_too_much_memory_end_a_program() {
    let mut config = shell("cat /dev/zero", "text", "text");
    config.output_mb = Some(1);
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &["more than 1 MB", "output-mb"]);

    // The process that takes the memory is not the one that was started.
    let script =
        "python3 -c 'import time; x = bytearray(b\"x\") * (300 << 20); time.sleep(1000)'; true";
    let mut config = shell(script, "text", "text");
    config.memory_mb = 100;
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &["MB of memory", "`memory-mb` allows 100"]);
}

#[test]
fn a_wish_to_stop_ends_a_program() {
    let io = TestIo::new();
    let config = shell("", "text", "text");
    let command = ["/bin/sh", "-c", "echo $$ > child; sleep 1000"].map(str::to_owned);
    let program = Program {
        command: &command,
        folder: io.root.clone(),
        environment: environment(&config.env).unwrap(),
        limits: Limits {
            time: Duration::from_secs(1000),
            memory_mb: 1000,
            output_mb: 1,
        },
    };
    let stop = AtomicBool::new(false);
    let child = io.root.join("child");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until("the program runs", || {
                std::fs::read_to_string(&child).is_ok_and(|text| text.ends_with('\n'))
            });
            stop.store(true, Ordering::Relaxed);
        });
        let result = program.run(texts(&["a"]), &|| stop.load(Ordering::Relaxed), |_| Ok(()));
        assert!(matches!(result, Err(ProgramError::Interrupted)));
    });
    assert_is_gone(&std::fs::read_to_string(&child).unwrap());
}

#[test]
fn a_program_sees_no_more_of_us_than_it_should() {
    let message = fault("cat > /dev/null; env | cut -d= -f1 | sort | tr '\\n' ' ' >&2; exit 1");
    assert_says(&message, &["PATH", "PYTHONHASHSEED"]);
    let io = TestIo::new();
    let ours = std::fs::File::create(io.root.join("a-file-of-ours")).unwrap();
    let files = fault("cat > /dev/null; ls -l /proc/self/fd >&2; exit 1");
    assert_says(&files, &["0 -> pipe:"]);
    assert!(!files.contains("a-file-of-ours"), "{files}");
    drop(ours);

    let (name, value) = a_variable();
    let script = format!("cat > /dev/null; echo \"got ${name}\" >&2; exit 1");
    let mut config = shell(&script, "text", "text");
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert!(!message.contains(&format!("got {value}")), "{message}");
    config.env = vec![name];
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &[&format!("got {value}")]);
    config.env = vec!["NO_SUCH_VARIABLE_AT_ALL".to_owned()];
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &["`NO_SUCH_VARIABLE_AT_ALL` is not set"]);
}

/// A variable of this process that a program does not get unasked, with its value.
#[expect(
    clippy::disallowed_methods,
    reason = "the test is about variables of the environment"
)]
fn a_variable() -> (String, String) {
    let of_the_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
    let is_plain = |text: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        !text.is_empty() && text.chars().all(is_plain)
    };
    std::env::vars()
        .find(|(name, value)| {
            let is_known =
                PASSED_ON.contains(&name.as_str()) || of_the_shell.contains(&name.as_str());
            !is_known && is_plain(name) && is_plain(value)
        })
        .expect("tests have some variable of the kind")
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

/// Waits for something that takes moments.
fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "it took too long until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn assert_is_gone(process: &str) {
    let stat = format!("/proc/{}/stat", process.trim());
    until("the process is gone", || {
        // A killed process whose new parent has not noticed yet is a zombie.
        std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z"))
    });
}
