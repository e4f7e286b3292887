//! Prompts out of Parquet files, and every way in which a file or a row can be wrong.

use std::fs::File;
use std::io::Cursor;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Int64Array, LargeListArray, ListArray, RecordBatch,
    StringArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;

use super::*;
use crate::testing::{TestIo, text_values};

pub(super) fn png(shade: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let picture = image::GrayImage::from_pixel(3, 2, image::Luma([shade]));
    picture
        .write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    bytes
}

/// A column of image lists in the layout of Hugging Face `datasets`.
fn image_column(rows: &[Vec<Vec<u8>>]) -> ArrayRef {
    let bytes: Vec<&[u8]> = rows.iter().flatten().map(Vec::as_slice).collect();
    let paths: Vec<Option<&str>> = vec![None; bytes.len()];
    let fields = vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ];
    let items = StructArray::new(
        fields.into(),
        vec![
            Arc::new(BinaryArray::from(bytes)),
            Arc::new(StringArray::from(paths)),
        ],
        None,
    );
    let item = Arc::new(Field::new("item", items.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
    Arc::new(ListArray::new(item, offsets, Arc::new(items), None))
}

fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        columns.into_iter().map(|(_, array)| array).collect(),
    )
    .unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

pub(super) fn source(path: &str) -> Source {
    serde_json::from_value(serde_json::json!({ "path": path })).unwrap()
}

/// A folder with one file `data.parquet` of these columns.
fn folder(columns: Vec<(&str, ArrayRef)>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("data.parquet"), columns);
    folder
}

pub(super) fn run(
    source: &Source,
    folder: &tempfile::TempDir,
) -> Result<(RecordBatch, TestIo), OperatorError> {
    let mut io = TestIo::new();
    io.root = folder.path().to_owned();
    io.run(source, 0)?;
    Ok((io.output("prompts"), io))
}

/// Roles and parts of the messages of a row, images by the first digits of their digest.
pub(super) fn conversation(prompts: &RecordBatch, row: usize) -> Vec<(String, Vec<String>)> {
    let messages: LargeListArray = prompts
        .column_by_name("messages")
        .unwrap()
        .as_list::<i64>()
        .clone();
    let messages = messages.value(row);
    let messages = messages.as_struct();
    let contents = messages.column(1).as_list::<i64>();
    (0..messages.len())
        .map(|index| {
            let parts = contents.value(index);
            let parts = parts.as_struct();
            let texts = parts.column(1).as_string::<i64>();
            let images = parts.column(2).as_string::<i64>();
            let shown = (0..parts.len()).map(|part| {
                if texts.is_valid(part) {
                    texts.value(part).to_owned()
                } else {
                    format!("[{}]", &images.value(part)[..6])
                }
            });
            (
                messages
                    .column(0)
                    .as_string::<i64>()
                    .value(index)
                    .to_owned(),
                shown.collect(),
            )
        })
        .collect()
}

#[test]
fn the_layout_of_easyr1_needs_no_mapping() {
    let (one, two) = (png(1), png(2));
    let folder = folder(vec![
        (
            "problem",
            texts(&[
                Some("<image>What? Compare <image>."),
                Some("No picture."),
                Some("In front."),
            ]),
        ),
        (
            "images",
            image_column(&[vec![one.clone(), two.clone()], vec![], vec![two.clone()]]),
        ),
        ("answer", Arc::new(Int64Array::from(vec![7, 8, 9]))),
        ("extra", texts(&[None, None, None])),
    ]);
    let (prompts, io) = run(&source("data.parquet"), &folder).unwrap();
    assert_eq!(prompts.schema(), TableName::Prompts.schema());
    assert_eq!(text_values(&prompts, "answer"), ["7", "8", "9"]);
    assert_eq!(text_values(&prompts, "source"), ["data", "data", "data"]);
    let (one, two) = (io.digest(&one), io.digest(&two));
    let (one, two) = (format!("[{}]", &one[..6]), format!("[{}]", &two[..6]));
    let parts = |row| conversation(&prompts, row)[0].1.clone();
    assert_eq!(parts(0), [one.as_str(), "What? Compare ", &two, "."]);
    assert_eq!(parts(1), ["No picture."]);
    assert_eq!(parts(2), [two.as_str(), "In front."]);
    assert_eq!(text_values(&prompts, "prompt_id")[0].len(), 32);
}

#[test]
fn columns_can_be_mapped_and_a_system_message_added() {
    let folder = folder(vec![
        ("q", texts(&[Some("a?"), Some("b?"), Some("c?")])),
        ("a", texts(&[Some("1"), Some("2"), Some("3")])),
        ("key", Arc::new(Int64Array::from(vec![10, 11, 12]))),
        ("how", texts(&[Some("so"), None, None])),
        ("kind", texts(&[Some("sum"), Some("read"), None])),
        (
            "picture",
            Arc::new(BinaryArray::from(vec![Some(png(1).as_slice()), None, None])),
        ),
    ]);
    let some = |name: &str| Some(name.to_owned());
    let columns = Columns {
        id: some("key"),
        problem: some("q"),
        images: some("picture"),
        answer: some("a"),
        solution: some("how"),
        category: some("kind"),
        ..Columns::default()
    };
    let config = Source {
        columns,
        limit: Some(2),
        system: some("Think."),
        name: some("mine"),
        ..source(".")
    };
    assert_eq!(config.inspect(folder.path()), []);
    let (prompts, _) = run(&config, &folder).unwrap();
    assert_eq!(text_values(&prompts, "prompt_id"), ["10", "11"]);
    assert_eq!(text_values(&prompts, "solution"), ["so", ""]);
    assert_eq!(text_values(&prompts, "category"), ["sum", "read"]);
    assert_eq!(text_values(&prompts, "source"), ["mine", "mine"]);
    let conversation = conversation(&prompts, 1);
    assert_eq!(
        conversation,
        [
            ("system".to_owned(), vec!["Think.".to_owned()]),
            ("user".to_owned(), vec!["b?".to_owned()])
        ]
    );
}

#[test]
fn a_folder_is_read_by_name_and_ids_are_unique_across_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, id: &str| {
        write(
            &folder.path().join(name),
            vec![
                ("problem", texts(&[Some(id)])),
                ("answer", texts(&[Some("1")])),
                ("id", texts(&[Some(id)])),
            ],
        );
    };
    file("b.parquet", "second");
    file("a.parquet", "first");
    let config = Source {
        columns: Columns {
            id: Some("id".to_owned()),
            ..Columns::default()
        },
        ..source(".")
    };
    let (prompts, _) = run(&config, &folder).unwrap();
    assert_eq!(text_values(&prompts, "prompt_id"), ["first", "second"]);
    file("c.parquet", "first");
    let error = run(&config, &folder).err().unwrap().to_string();
    assert!(
        error.contains("c.parquet, row 0")
            && error.contains("`first`")
            && error.contains("a.parquet, row 0"),
        "{error}"
    );
}

#[test]
fn bad_rows_are_named() {
    let good_images = || image_column(&[vec![png(1)], vec![png(2)]]);
    let problems = || texts(&[Some("<image>a"), Some("<image>b")]);
    let answers = || texts(&[Some("1"), Some("2")]);
    let mut broken = png(3);
    broken.truncate(40);
    let cases: Vec<(Vec<(&str, ArrayRef)>, &str)> = vec![
        (
            vec![
                ("problem", problems()),
                ("images", good_images()),
                ("answer", texts(&[Some("1"), None])),
            ],
            "no answer",
        ),
        (
            vec![
                ("problem", problems()),
                ("images", good_images()),
                ("answer", texts(&[Some("1"), Some(" ")])),
            ],
            "no answer",
        ),
        (
            vec![
                ("problem", texts(&[Some("<image>a"), None])),
                ("images", good_images()),
                ("answer", answers()),
            ],
            "no text",
        ),
        (
            vec![
                ("problem", problems()),
                ("images", image_column(&[vec![png(1)], vec![broken]])),
                ("answer", answers()),
            ],
            "image 0 cannot be decoded",
        ),
        (
            vec![
                ("problem", problems()),
                ("images", image_column(&[vec![png(1)], vec![vec![]]])),
                ("answer", answers()),
            ],
            "no bytes",
        ),
        (
            vec![
                ("problem", problems()),
                ("images", image_column(&[vec![png(1)], vec![]])),
                ("answer", answers()),
            ],
            "1 `<image>` and the row has 0 images",
        ),
        (
            vec![
                ("problem", texts(&[Some("a"), Some("a")])),
                ("answer", texts(&[Some("1"), Some("1")])),
            ],
            "the same prompt",
        ),
    ];
    for (columns, expected) in cases {
        let folder = folder(columns);
        let error = run(&source("data.parquet"), &folder)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("data.parquet, row 1") && error.contains(expected),
            "{expected}: {error}"
        );
    }
}

#[test]
fn bad_files_are_found_before_anything_runs() {
    let folder = folder(vec![
        ("problm", texts(&[Some("a")])),
        ("answer", image_column(&[vec![]])),
        ("images", texts(&[None])),
    ]);
    std::fs::write(folder.path().join("cut.parquet"), b"PAR1 and then nothing").unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    let codes = |path: &str| {
        source(path)
            .inspect(folder.path())
            .iter()
            .map(|fault| fault.code)
            .collect::<Vec<_>>()
    };
    assert_eq!(codes("nowhere.parquet"), ["missing-file"]);
    assert_eq!(codes("empty"), ["missing-file"]);
    assert_eq!(codes("cut.parquet"), ["corrupt-parquet"]);
    assert_eq!(
        codes("data.parquet"),
        ["missing-column", "type-mismatch", "type-mismatch"]
    );
    let fault = &source("data.parquet").inspect(folder.path())[0];
    assert_eq!(fault.path, ["columns", "problem"]);
    assert!(
        fault.help.as_ref().unwrap().contains("`problm`"),
        "{fault:?}"
    );
}
