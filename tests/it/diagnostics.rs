//! What a user reads when a pipeline or a data file is broken: one clear message for each mistake.
//!
//! Every case is a pipeline in `tests/fixtures/broken`, checked or run in a project made for the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;

/// A picture that every decoder reads: one grey pixel.
const PNG: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x3a, 0x7e, 0x9b,
    0x55, 0x00, 0x00, 0x00, 0x0a, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0x68, 0x00, 0x00, 0x00,
    0x82, 0x00, 0x81, 0x77, 0xcd, 0x72, 0xb6, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae,
    0x42, 0x60, 0x82,
];

/// A folder with pipelines, data files and models, some of them broken.
struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in repository("tests/fixtures/broken").read_dir().unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let project = Self { folder };
        project.write_data();
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_data(&self) {
        fs::create_dir(self.path("data")).unwrap();
        let data = |name: &str| self.path("data").join(name);
        let good = [(PNG, Some("1")), (PNG, Some("2"))];
        write_prompts(&data("prompts.parquet"), &good);
        write_prompts(
            &data("unreadable-image.parquet"),
            &[good[0], (b"no picture at all", Some("2"))],
        );
        write_prompts(
            &data("missing-answer.parquet"),
            &[good[0], good[1], (PNG, None)],
        );

        let bytes = fs::read(data("prompts.parquet")).unwrap();
        fs::write(data("cut-off.parquet"), &bytes[..bytes.len() / 2]).unwrap();
        let mut damaged = bytes;
        // The first page; the footer at the end stays whole.
        damaged[4..60].fill(0xff);
        fs::write(data("damaged.parquet"), damaged).unwrap();
    }

    /// Copies the example's model folder, without one file.
    fn copy_model(&self, name: &str, without: Option<&str>) -> PathBuf {
        let folder = self.path("models").join(name);
        fs::create_dir_all(&folder).unwrap();
        for entry in repository("examples/models/base").read_dir().unwrap() {
            let path = entry.unwrap().path();
            if without.is_none_or(|without| !path.ends_with(without)) {
                fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
            }
        }
        folder
    }

    fn metis_flow(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metis-flow"));
        command.args(arguments).current_dir(self.folder.path());
        command
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    }

    /// What `check` says about a pipeline.
    fn check(&self, name: &str) -> String {
        let output = self.metis_flow(&["check", &format!("{name}.yaml")]);
        self.told(&output, |stderr| stderr)
    }

    /// What `run` says about the stage that fails.
    fn run(&self, name: &str) -> String {
        let output = self.metis_flow(&["run", &format!("{name}.yaml")]);
        self.told(&output, |stderr| {
            let start = stderr.find("error: stage").unwrap_or(0);
            let end = stderr
                .find("help: the stages that finished")
                .unwrap_or(stderr.len());
            stderr[start..end].to_owned()
        })
    }

    fn told(&self, output: &Output, select: impl Fn(String) -> String) -> String {
        assert!(
            output.stdout.is_empty(),
            "data goes to standard output, and there is none"
        );
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        // Messages name the project folder as it is, or with symbolic links resolved.
        let real = fs::canonicalize(self.folder.path()).unwrap();
        let stderr = stderr.replace(&real.display().to_string(), "[project]");
        let stderr = stderr.replace(&self.folder.path().display().to_string(), "[project]");
        let lines: Vec<String> = select(stderr)
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        format!(
            "exit code {}\n{}",
            output.status.code().unwrap(),
            lines.join("\n")
        )
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of prompts with an image and perhaps an answer each.
fn write_prompts(path: &Path, rows: &[(&[u8], Option<&str>)]) {
    let problems: Vec<String> = (0..rows.len())
        .map(|row| format!("<image>Question {row}?"))
        .collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("problem", Arc::new(StringArray::from(problems))),
        (
            "images",
            Arc::new(BinaryArray::from_iter_values(
                rows.iter().map(|(image, _)| image),
            )),
        ),
        (
            "answer",
            Arc::new(
                rows.iter()
                    .map(|(_, answer)| *answer)
                    .collect::<StringArray>(),
            ),
        ),
    ];
    let nullable = |(name, array): &(&str, ArrayRef)| {
        Field::new(*name, DataType::clone(array.data_type()), true)
    };
    let schema = Arc::new(Schema::new(
        columns.iter().map(nullable).collect::<Vec<_>>(),
    ));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Asserts what a user is told; digests differ with every change of an example and are left out.
macro_rules! assert_told {
    ($told:expr) => {
        insta::with_settings!({ filters => vec![(r"\b[0-9a-f]{64}\b", "[digest]"), (r"\b[0-9a-f]{12}\b", "[digest]")] }, {
            insta::assert_snapshot!($told)
        })
    };
}

#[test]
fn a_right_pipeline_is_ok() {
    let project = Project::new();
    fs::write(project.path("right.yaml"), "version: 1\nname: right\nseed: 1\nstages:\n  prompts: { source: { path: data/prompts.parquet } }\n").unwrap();
    assert_eq!(project.check("right"), "exit code 0\nok: 1 stage");
    let json = project.metis_flow(&["check", "right.yaml", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "ok": true, "stages": 1 }));
}

#[test]
fn problems_are_data_on_request() {
    let output = Project::new().metis_flow(&["check", "unknown-key.yaml", "--json"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(2), 0));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let first = &json["problems"][0];
    assert_eq!(
        (first["code"].as_str(), first["file"].as_str()),
        (Some("unknown-key"), Some("unknown-key.yaml"))
    );
    assert_eq!(
        (
            first["place"]["line"].as_u64(),
            first["place"]["column"].as_u64()
        ),
        (Some(11), Some(7))
    );
}

#[test]
fn a_file_that_is_not_there() {
    assert_told!(Project::new().check("nowhere"));
}

#[test]
fn unknown_key() {
    assert_told!(Project::new().check("unknown-key"));
}

#[test]
fn wrong_type() {
    assert_told!(Project::new().check("wrong-type"));
}

#[test]
fn missing_column() {
    assert_told!(Project::new().check("missing-column"));
}

#[test]
fn cycle() {
    assert_told!(Project::new().check("cycle"));
}

#[test]
fn unknown_stage_or_port() {
    assert_told!(Project::new().check("unknown-stage-or-port"));
}

#[test]
fn wrong_artifact() {
    assert_told!(Project::new().check("wrong-artifact"));
}

#[test]
fn several_problems_at_once() {
    assert_told!(Project::new().check("several-problems"));
}

#[test]
fn not_yaml() {
    assert_told!(Project::new().check("not-yaml"));
}

#[test]
fn corrupt_parquet() {
    assert_told!(Project::new().check("corrupt-parquet"));
}

#[test]
fn damaged_parquet() {
    assert_told!(Project::new().run("damaged-parquet"));
}

#[test]
fn unreadable_image() {
    assert_told!(Project::new().run("unreadable-image"));
}

#[test]
fn missing_answer() {
    assert_told!(Project::new().run("missing-answer"));
}

#[test]
fn missing_model_file() {
    let project = Project::new();
    project.copy_model("without-tokenizer", Some("tokenizer.json"));
    assert_told!(project.check("missing-model-file"));
}

#[test]
fn wrong_tensor_shape() {
    let project = Project::new();
    let config = project.copy_model("other-shape", None).join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    for place in ["/intermediate_size", "/text_config/intermediate_size"] {
        if let Some(size) = json.pointer_mut(place) {
            *size = serde_json::json!(size.as_u64().unwrap() + 8);
        }
    }
    fs::write(&config, json.to_string()).unwrap();
    assert_told!(project.run("wrong-tensor-shape"));
}
