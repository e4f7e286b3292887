//! A project with pipelines, data files and models, most of them broken.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, StringArray};

use crate::support::Project;
use crate::tables::{table, texts, write};

/// A picture that every decoder reads: one grey pixel.
const PNG: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x3a, 0x7e, 0x9b,
    0x55, 0x00, 0x00, 0x00, 0x0a, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0x68, 0x00, 0x00, 0x00,
    0x82, 0x00, 0x81, 0x77, 0xcd, 0x72, 0xb6, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45, 0x4e, 0x44, 0xae,
    0x42, 0x60, 0x82,
];

/// The same picture, whose header says that it has 100 000 x 100 000 pixels.
const HUGE_PNG_HEADER: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x01, 0x86, 0xa0, 0x00, 0x01, 0x86, 0xa0, 0x08, 0x00, 0x00, 0x00, 0x00, 0x8d, 0x39, 0x54,
    0x14,
];

pub(super) struct Broken {
    pub(super) project: Project,
}

pub(super) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl Broken {
    pub(super) fn new() -> Self {
        let project = Project::new();
        for entry in repository("tests/fixtures/broken").read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(
                    &path,
                    project.path(path.file_name().unwrap().to_str().unwrap()),
                )
                .unwrap();
            }
        }
        let broken = Self { project };
        broken.write_data();
        broken
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.project.path(name)
    }

    fn write_data(&self) {
        let folder = self.path("data");
        fs::create_dir(&folder).unwrap();
        let data = |name: &str| folder.join(format!("{name}.parquet"));
        let good = [(PNG, Some("1")), (PNG, Some("2"))];
        write_prompts(&data("prompts"), &good);
        let second_image = |bytes| [good[0], (bytes, Some("2"))];
        write_prompts(&data("unreadable-image"), &second_image(b"no picture"));
        write_prompts(&data("truncated-image"), &second_image(&PNG[..40]));
        write_prompts(&data("empty-image"), &second_image(b""));
        let mut huge = PNG.to_vec();
        huge[..HUGE_PNG_HEADER.len()].copy_from_slice(HUGE_PNG_HEADER);
        write_prompts(&data("image-too-large"), &second_image(&huge));
        write_prompts(&data("missing-answer"), &[good[0], good[1], (PNG, None)]);

        let bytes = fs::read(data("prompts")).unwrap();
        fs::write(data("cut-off"), &bytes[..bytes.len() / 2]).unwrap();
        let mut damaged = bytes;
        // The first page; the footer at the end stays whole.
        damaged[4..60].fill(0xff);
        fs::write(data("damaged"), damaged).unwrap();
        fs::write(data("no-bytes"), "").unwrap();
        fs::write(data("text-file"), "problem,answer\n1 + 1?,2\n").unwrap();
        symlink("circle.parquet", data("circle")).unwrap();
        write_texts(&folder);

        fs::create_dir(folder.join("nothing")).unwrap();
        fs::write(folder.join("nothing/README.md"), "Data are elsewhere.").unwrap();
        fs::create_dir(folder.join("mixed")).unwrap();
        fs::copy(data("prompts"), folder.join("mixed/a.parquet")).unwrap();
        fs::copy(data("wrong-columns"), folder.join("mixed/b.parquet")).unwrap();
    }

    /// Copies the example's model folder under another name.
    pub(super) fn copy_model(&self, name: &str) -> PathBuf {
        let folder = self.path("models").join(name);
        fs::create_dir_all(&folder).unwrap();
        for entry in repository("examples/models/base").read_dir().unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        folder
    }

    /// What a command says; nothing on standard output, where data go.
    pub(super) fn say(&self, arguments: &[&str]) -> String {
        let output = self.project.command(arguments).output().unwrap();
        self.told(&output)
    }

    /// What a command says while no file may grow over so many blocks of 512 bytes, as if the disk were full then.
    pub(super) fn say_without_room(&self, blocks: u32, arguments: &[&str]) -> String {
        let plain = self.project.command(arguments);
        let mut command = Command::new("sh");
        // The signal is ignored, so that writing fails as it does on a full disk.
        let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        command
            .args(["-c", &limited, "sh"])
            .arg(plain.get_program())
            .args(plain.get_args())
            .current_dir(self.path(""));
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.told(&command.output().unwrap())
    }

    /// What `check` says about a pipeline.
    pub(super) fn check(&self, name: &str) -> String {
        self.say(&["check", &format!("{name}.yaml")])
    }

    /// What `run` says about the stage that fails, without progress and closing lines.
    pub(super) fn run(&self, name: &str) -> String {
        only_the_error(&self.say(&["run", &format!("{name}.yaml"), "--device", "cpu"]))
    }

    pub(super) fn told(&self, output: &Output) -> String {
        assert!(
            output.stdout.is_empty(),
            "data goes to standard output, and there is none: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        // Messages name the project folder as it is, or with symbolic links resolved.
        let folder = self.path("");
        let folder = folder.to_str().unwrap().trim_end_matches('/');
        let real = fs::canonicalize(folder).unwrap();
        let stderr = stderr.replace(real.to_str().unwrap(), "[project]");
        let stderr = stderr.replace(folder, "[project]");
        // Where long lines are broken depends on the length of the folder's name.
        let stderr = stderr.replace("\n  | ", " ").replace("\n        ", " ");
        let lines: Vec<&str> = stderr.lines().map(str::trim_end).collect();
        format!(
            "exit code {}\n{}",
            output
                .status
                .code()
                .map_or_else(|| output.status.to_string(), |code| code.to_string()),
            lines.join("\n")
        )
    }
}

/// Leaves out how far the run came and its closing table.
pub(super) fn only_the_error(told: &str) -> String {
    let (code, said) = told.split_once('\n').unwrap();
    let start = said.find("error: stage").unwrap_or(0);
    let end = said
        .find("help: the stages that finished")
        .unwrap_or(said.len());
    format!("{code}\n{}", said[start..end].trim_end())
}

/// Files without pictures.
fn write_texts(folder: &Path) {
    let data = |name: &str| folder.join(format!("{name}.parquet"));
    let questions = || texts(["1 + 1?", "2 + 2?"]);
    let answers = || texts(["2", "4"]);
    let column = |array: ArrayRef| vec![("problem", questions()), ("answer", array)];
    write(
        &data("wrong-columns"),
        &table(vec![("question", questions()), ("gold", answers())]),
    );
    write(
        &data("null-problem"),
        &table(vec![
            (
                "problem",
                Arc::new(StringArray::from(vec![Some("1 + 1?"), None])),
            ),
            ("answer", answers()),
        ]),
    );
    write(&data("no-answers"), &table(column(texts(["", "  "]))));
    let mut twice = column(answers());
    twice.push(("id", texts(["same", "same"])));
    write(&data("duplicate-ids"), &table(twice));
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values([PNG, PNG]));
    write(
        &data("too-few-images"),
        &table(vec![
            ("problem", texts(["<image>One?", "<image><image>Two?"])),
            ("images", images),
            ("answer", answers()),
        ]),
    );
    let paths = texts(["data/picture-0.png", "data/picture-1.png"]);
    write(
        &data("image-not-there"),
        &table(vec![
            ("problem", texts(["<image>One?", "<image>Two?"])),
            ("images", paths),
            ("answer", answers()),
        ]),
    );
    let turns = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
    let lines = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    lines("chats.jsonl", format!("{{\"messages\": {turns}}}\n"));
    let both = format!("{{\"messages\": {turns}, \"conversations\": {turns}}}\n");
    lines("two-layouts.jsonl", both);
    let good = format!("{{\"messages\": {turns}}}");
    let mistakes = [
        r#"{"messages": [{"role": "user", "content": "c"}"#,
        r#"{"messages": [{"role": "teacher", "content": "c"}]}"#,
        r#"{"messages": [{"role": "user", "content": "c"}]}"#,
    ];
    lines(
        "bad-lines.jsonl",
        format!("{good}\n{}\n", mistakes.join("\n")),
    );
    write_invalid_text(&data("invalid-text"));
}

/// A column that says to be text and holds bytes that are none.
fn write_invalid_text(path: &Path) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    let schema =
        "message prompts { required binary problem (UTF8); required binary answer (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for value in [&b"1 + 1\xff?"[..], b"2"] {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&[ByteArray::from(value.to_vec())], None, None)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// A file of prompts with an image and perhaps an answer each.
fn write_prompts(path: &Path, rows: &[(&[u8], Option<&str>)]) {
    let questions = (0..rows.len()).map(|row| format!("<image>Question {row}?"));
    let images = BinaryArray::from_iter_values(rows.iter().map(|(image, _)| image));
    let answers: StringArray = rows.iter().map(|(_, answer)| *answer).collect();
    let rows = table(vec![
        ("problem", texts(questions)),
        ("images", Arc::new(images)),
        ("answer", Arc::new(answers)),
    ]);
    write(path, &rows);
}
