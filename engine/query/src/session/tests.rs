//! Sessions over real Parquet files.

use std::fs::File;
use std::path::Path;

use arrow::array::{AsArray, Int64Array, LargeStringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use parquet::arrow::ArrowWriter;

use engine_core::operator::BatchReader;
use engine_core::{Artifact, StageEvent, StageView};

use super::*;
use crate::{Catalog, StoredDataset, rows_to_json};
use schemas::TableName;

fn part(folder: &Path, name: &str, ids: &[i64]) -> String {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::LargeUtf8, true),
    ]));
    let names: Vec<Option<String>> = ids
        .iter()
        .map(|id| (id % 2 == 0).then(|| format!("n{id}")))
        .collect();
    let batch = RecordBatch::try_new(
        Arc::clone(&schema),
        vec![
            Arc::new(Int64Array::from(ids.to_vec())),
            Arc::new(LargeStringArray::from(names)),
        ],
    )
    .unwrap();
    let path = folder.join(name);
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    format!("file://{}", path.display())
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    batches
        .iter()
        .flat_map(|batch| {
            batch
                .column_by_name("id")
                .unwrap()
                .as_primitive::<Int64Type>()
                .values()
                .to_vec()
        })
        .collect()
}

#[test]
fn a_repeatable_session_reads_parts_in_the_given_order() {
    let folder = tempfile::tempdir().unwrap();
    let urls = vec![
        part(folder.path(), "z.parquet", &[5, 1]),
        part(folder.path(), "a.parquet", &[9]),
        part(folder.path(), "m.parquet", &[3]),
    ];
    let session = QuerySession::new(Order::Repeatable).unwrap();
    session.register_parquet("numbers", urls).unwrap();
    let frame = session.sql("select id from numbers where id > 0").unwrap();
    assert_eq!(ids(&session.collect(frame).unwrap()), [5, 1, 9, 3]);
    assert_eq!(
        session.schema("numbers").unwrap().field(1).data_type(),
        &DataType::LargeUtf8
    );
}

#[test]
fn only_queries_are_allowed_and_mistakes_are_named() {
    let session = QuerySession::new(Order::Any).unwrap();
    session
        .register_empty(
            "numbers",
            &Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)])),
        )
        .unwrap();
    for (text, expected) in [
        ("create table t as select 1", "DDL"),
        ("insert into numbers values (1)", "DML"),
        ("select nme from numbers", "nme"),
        ("select * from nombers", "nombers"),
        ("selct 1", "selct"),
    ] {
        let error = session.sql(text).unwrap_err();
        assert!(matches!(error, QueryError::Query(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_session_works_inside_an_async_runtime() {
    let session = QuerySession::new(Order::Any).unwrap();
    let frame = session.sql("select cast(7 as bigint) as id").unwrap();
    assert_eq!(ids(&session.collect(frame).unwrap()), [7]);
}

#[test]
fn the_catalog_unites_the_datasets_of_a_table_and_says_where_rows_are_from() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = |stage: &str, url: String| StoredDataset {
        pipeline: "demo".to_owned(),
        run: "run-1".to_owned(),
        stage: stage.to_owned(),
        port: "rows".to_owned(),
        table: TableName::Rows,
        urls: vec![url],
    };
    let catalog = Catalog {
        datasets: vec![
            dataset("first", part(folder.path(), "1.parquet", &[1, 2])),
            dataset("second", part(folder.path(), "2.parquet", &[3])),
        ],
        runs: Vec::new(),
    };
    let (_, batches) = catalog
        .query("select stage, id, name, [id, id] as pair from rows order by id")
        .unwrap();
    let json = serde_json::to_string(&rows_to_json(&batches).unwrap()).unwrap();
    assert_eq!(
        json,
        r#"[{"stage":"first","id":1,"name":null,"pair":[1,1]},{"stage":"first","id":2,"name":"n2","pair":[2,2]},{"stage":"second","id":3,"name":null,"pair":[3,3]}]"#
    );
    let error = catalog
        .query("select * from prompts")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("prompts") && error.ends_with("tables are rows, runs, stages, artifacts"),
        "{error}"
    );
    let (schema, none) = catalog.query("select * from runs").unwrap();
    assert_eq!(
        (
            schema.fields().len(),
            none.iter().map(RecordBatch::num_rows).sum::<usize>()
        ),
        (7, 0)
    );
}

/// Output ports that forget what is written to them.
struct Nowhere;

impl StageView for Nowhere {
    fn inputs(&self, _port: &str) -> &[Artifact] {
        &[]
    }

    fn input_ports(&self) -> Vec<String> {
        Vec::new()
    }

    fn read(&self, _port: &str) -> Result<BatchReader, OperatorError> {
        Ok(Box::new(std::iter::empty()))
    }

    fn part_urls(&self, _port: &str) -> Result<Vec<String>, OperatorError> {
        Ok(Vec::new())
    }

    fn model_folder(&self, _port: &str) -> Result<std::path::PathBuf, OperatorError> {
        Ok(std::path::PathBuf::new())
    }

    fn put_media(&self, _bytes: &[u8]) -> Result<String, OperatorError> {
        Ok(String::new())
    }

    fn media(&self, _digest: &str) -> Result<Vec<u8>, OperatorError> {
        Ok(Vec::new())
    }

    fn scratch(&self) -> &Path {
        Path::new("")
    }

    fn event(&self, _event: StageEvent) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

impl StageIo for Nowhere {
    fn write(&mut self, _port: &str, _batch: RecordBatch) -> Result<(), OperatorError> {
        Ok(())
    }

    fn write_model(&mut self, _port: &str, _folder: &Path) -> Result<(), OperatorError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<Option<engine_core::Checkpoint>, OperatorError> {
        Ok(None)
    }

    fn wants_checkpoint(&self) -> bool {
        false
    }

    fn checkpoint(
        &mut self,
        _step: u64,
        _folder: &Path,
        _state: serde_json::Value,
    ) -> Result<(), OperatorError> {
        Ok(())
    }
}

#[test]
fn a_query_that_panics_is_an_error_and_no_shorter_result() {
    let folder = tempfile::tempdir().unwrap();
    let urls = vec![part(folder.path(), "a.parquet", &[1, 2, 3])];
    let session = QuerySession::new(Order::Repeatable).unwrap();
    session.register_parquet("numbers", urls).unwrap();
    session.register_function(datafusion::logical_expr::create_udf(
        "broken",
        vec![DataType::Int64],
        DataType::Int64,
        datafusion::logical_expr::Volatility::Volatile,
        Arc::new(|_| panic!("a fault in a function")),
    ));
    let frame = session.sql("select broken(id) as id from numbers").unwrap();
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    let error = session.write(frame, &schema, &mut Nowhere, "rows");
    assert!(matches!(error, Err(OperatorError::Data(_))), "{error:?}");
}

#[test]
fn parts_are_read_through_whatever_store_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let source = part(folder.path(), "a.parquet", &[5, 1, 9]);
    let bytes = std::fs::read(source.strip_prefix("file://").unwrap()).unwrap();
    let chaos = format!(
        "chaos+{}?seed=7&rate=0.3",
        store_url(&folder.path().join("store"))
    );
    for location in ["memory://", "chaos+memory://?seed=5&rate=0.3", &chaos] {
        let store = engine_store::Store::open(location).unwrap();
        let media = store.put_media(&bytes).unwrap();
        let url = store.object_url(&format!("v1/media/{media}"));
        let session = QuerySession::new(Order::Repeatable).unwrap();
        session
            .register_parquet("numbers", vec![url.clone(), url])
            .unwrap();
        let frame = session.sql("select id from numbers").unwrap();
        assert_eq!(
            ids(&session.collect(frame).unwrap()),
            [5, 1, 9, 5, 1, 9],
            "{location}"
        );
    }
}

fn store_url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

#[test]
fn a_sort_that_has_no_room_in_memory_goes_on_in_the_scratch_folder() {
    let folder = tempfile::tempdir().unwrap();
    let ids_in: Vec<i64> = (0..400_000).map(|id| id * 7919 % 400_000).collect();
    let url = part(folder.path(), "a.parquet", &ids_in);
    let scratch = folder.path().join("scratch");
    let session = QuerySession::build(
        Order::Repeatable,
        DiskManagerMode::Directories(vec![scratch.clone()]),
        16 << 20,
    )
    .unwrap();
    session.register_parquet("numbers", vec![url]).unwrap();
    let frame = session
        .sql("select id, repeat('x', 200) as filler from numbers order by filler, id")
        .unwrap();
    let sorted = ids(&session.collect(frame).unwrap());
    assert!(sorted.iter().copied().eq(0..400_000));
    assert!(std::fs::read_dir(&scratch).unwrap().count() > 0);
}

#[test]
fn a_query_without_enough_memory_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let ids_in: Vec<i64> = (0..300_000).collect();
    let url = part(folder.path(), "a.parquet", &ids_in);
    let session =
        QuerySession::build(Order::Repeatable, DiskManagerMode::Disabled, 1 << 20).unwrap();
    session.register_parquet("numbers", vec![url]).unwrap();
    let frame = session
        .sql("select a.id from numbers a join numbers b on a.id = b.id order by a.name")
        .unwrap();
    let error = session.collect(frame).unwrap_err().to_string();
    assert!(error.contains(MEMORY_VARIABLE), "{error}");
}
