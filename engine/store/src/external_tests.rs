//! Digests of files that are the same in what counts, and of files that are not.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::*;

fn bytes(path: &Path) -> Digest {
    external_digest(path, ExternalContent::Bytes).unwrap()
}

fn rows(path: &Path) -> Digest {
    external_digest(path, ExternalContent::Rows).unwrap()
}

#[test]
fn the_place_of_a_folder_does_not_count_but_its_files_do() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, config: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.join("nested")).unwrap();
        std::fs::write(path.join("config.json"), config).unwrap();
        std::fs::write(path.join("nested/weights"), "weights").unwrap();
        std::fs::write(path.join(".hidden"), name).unwrap();
        bytes(&path)
    };
    let (first, moved, changed) = (
        make("first", "{}"),
        make("moved", "{}"),
        make("changed", "{ }"),
    );
    assert_eq!(first, moved);
    assert_ne!(first, changed);
    std::fs::rename(
        folder.path().join("moved/config.json"),
        folder.path().join("moved/other.json"),
    )
    .unwrap();
    assert_ne!(bytes(&folder.path().join("moved")), first);
}

#[test]
fn a_missing_file_is_named() {
    for content in [ExternalContent::Bytes, ExternalContent::Rows] {
        let message = external_digest(Path::new("/no/such/file.parquet"), content)
            .unwrap_err()
            .to_string();
        assert!(message.contains("/no/such/file.parquet"), "{message}");
    }
}

fn table(ids: &[i64], text: &DataType) -> RecordBatch {
    let names: ArrayRef = Arc::new(StringArray::from_iter(
        ids.iter()
            .map(|id| (id % 3 != 0).then(|| format!("n{}", id % 2))),
    ));
    RecordBatch::try_from_iter_with_nullable([
        (
            "id",
            Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef,
            false,
        ),
        ("name", cast(&names, text).unwrap(), true),
    ])
    .unwrap()
}

fn write(path: &Path, batch: &RecordBatch, compression: Compression, group: usize) {
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(group))
        .build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn only_the_rows_of_parquet_files_count() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let ids: Vec<i64> = (0..100).collect();
    let plain = Compression::UNCOMPRESSED;
    write(
        &path("a.parquet"),
        &table(&ids, &DataType::Utf8),
        plain,
        1000,
    );
    let expected = rows(&path("a.parquet"));

    write(
        &path("b.parquet"),
        &table(&ids, &DataType::LargeUtf8),
        Compression::SNAPPY,
        7,
    );
    assert_eq!(rows(&path("b.parquet")), expected);
    let coded = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    write(&path("c.parquet"), &table(&ids, &coded), plain, 1000);
    assert_eq!(rows(&path("c.parquet")), expected);
    assert_ne!(bytes(&path("a.parquet")), bytes(&path("b.parquet")));

    // The same rows in several files, in the order of their names.
    std::fs::create_dir(path("split")).unwrap();
    for (name, ids) in [("2.parquet", &ids[40..]), ("1.parquet", &ids[..40])] {
        write(
            &path("split").join(name),
            &table(ids, &DataType::Utf8),
            plain,
            10,
        );
    }
    std::fs::write(path("split/README.md"), "no rows").unwrap();
    assert_eq!(rows(&path("split")), expected);

    let mut changed = ids.clone();
    changed[57] += 300;
    write(
        &path("d.parquet"),
        &table(&changed, &DataType::Utf8),
        plain,
        1000,
    );
    assert_ne!(rows(&path("d.parquet")), expected);
    changed.swap(0, 1);
    write(
        &path("e.parquet"),
        &table(&changed, &DataType::Utf8),
        plain,
        1000,
    );
    assert_ne!(rows(&path("e.parquet")), rows(&path("d.parquet")));
    // Without rows, the columns still count.
    let none = |name: &str, column: &str| {
        let empty = RecordBatch::try_from_iter([(
            column,
            Arc::new(LargeStringArray::from(Vec::<&str>::new())) as ArrayRef,
        )])
        .unwrap();
        write(&path(name), &empty, plain, 10);
        rows(&path(name))
    };
    assert_ne!(none("f.parquet", "name"), none("g.parquet", "title"));
}

#[test]
fn other_files_count_by_their_bytes_and_damaged_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("rows.jsonl");
    std::fs::write(&lines, "{\"id\": 1}\n").unwrap();
    assert_eq!(rows(&lines), bytes(&lines));
    let damaged = folder.path().join("cut.parquet");
    std::fs::write(&damaged, "PAR1 and no more").unwrap();
    let message = external_digest(&damaged, ExternalContent::Rows)
        .unwrap_err()
        .to_string();
    assert!(message.contains("cut.parquet"), "{message}");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("growing");
    std::fs::write(&path, "one").unwrap();
    let before = Stat::from(&std::fs::metadata(&path).unwrap());
    assert!(check_unchanged(&path, before).is_ok());
    std::fs::write(&path, "one and two").unwrap();
    let error = check_unchanged(&path, before).unwrap_err().to_string();
    assert!(
        error.contains("growing") && error.contains("changed while"),
        "{error}"
    );
    // The same size, put in its place.
    let before = Stat::from(&std::fs::metadata(&path).unwrap());
    std::fs::write(folder.path().join("new"), "two and one").unwrap();
    std::fs::rename(folder.path().join("new"), &path).unwrap();
    assert!(check_unchanged(&path, before).is_err());
}

#[test]
fn a_large_file_that_changed_has_another_digest_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, vec![1_u8; 100_000]).unwrap();
    let first = bytes(&path);
    assert_eq!(bytes(&path), first);
    std::fs::write(&path, vec![2_u8; 100_000]).unwrap();
    assert_ne!(bytes(&path), first);
}
