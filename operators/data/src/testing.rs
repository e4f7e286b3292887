//! A stage's surroundings for tests: inputs as Parquet files in a temporary folder, outputs in memory, and small tables.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, LargeListArray, LargeStringArray,
    RecordBatch, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use engine_core::operator::BatchReader;
use engine_core::{
    Artifact, Dataset, Digest, OperatorConfig, OperatorError, PartRef, PortType, PortTypes,
    RowsDigest, StageContext, StageEvent, StageIo, map_whole,
};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::TableName;

use crate::messages::MessagesBuilder;

pub(crate) struct TestIo {
    folder: tempfile::TempDir,
    pub(crate) root: PathBuf,
    inputs: BTreeMap<String, Vec<PathBuf>>,
    artifacts: BTreeMap<String, Vec<Artifact>>,
    outputs: BTreeMap<String, Vec<RecordBatch>>,
    media: Mutex<BTreeMap<String, Vec<u8>>>,
    events: Mutex<Vec<StageEvent>>,
}

/// The rows as the store keeps them.
fn without_dictionaries(batch: &RecordBatch) -> Result<RecordBatch, OperatorError> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let data_type = match field.data_type() {
            DataType::Dictionary(_, value) => value.as_ref(),
            other => other,
        };
        fields.push(Field::clone(field).with_data_type(data_type.clone()));
        columns.push(cast(column, data_type)?);
    }
    Ok(RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns,
    )?)
}

impl TestIo {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        Self {
            folder,
            root,
            inputs: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            outputs: BTreeMap::new(),
            media: Mutex::default(),
            events: Mutex::default(),
        }
    }

    /// Sets an input port that takes several tables, each by its parts.
    pub(crate) fn input_tables(&mut self, port: &str, tables: &[Vec<RecordBatch>]) {
        self.input(port, &tables.concat());
        let part = |batch: &RecordBatch| PartRef {
            path: String::new(),
            rows: batch.num_rows() as u64,
            bytes: 0,
            digest: RowsDigest(String::new()),
        };
        let artifact = |parts: &Vec<RecordBatch>| {
            Artifact::Dataset(Dataset {
                digest: Digest::of(b"rows"),
                table: TableName::Rows,
                rows: parts.iter().map(|batch| batch.num_rows() as u64).sum(),
                parts: parts.iter().map(part).collect(),
            })
        };
        let artifacts = tables.iter().map(artifact).collect();
        self.artifacts.insert(port.to_owned(), artifacts);
    }

    /// Sets an input port, one part per batch. The names of the parts sort against their order, as digests may.
    pub(crate) fn input(&mut self, port: &str, parts: &[RecordBatch]) {
        let mut paths = Vec::new();
        for (index, batch) in parts.iter().enumerate() {
            let path = self
                .folder
                .path()
                .join(format!("{port}-{:05}.parquet", parts.len() - index));
            let mut writer =
                ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
            writer.write(batch).unwrap();
            writer.close().unwrap();
            paths.push(path);
        }
        self.inputs.insert(port.to_owned(), paths);
    }

    /// Runs the stage; a map operator's over all its rows.
    pub(crate) fn run(
        &mut self,
        config: &dyn OperatorConfig,
        seed: u64,
    ) -> Result<(), OperatorError> {
        let root = self.root.clone();
        let context = StageContext {
            stage: "test",
            seed,
            root: &root,
            backend: None,
        };
        let Some(operator) = config.as_map() else {
            return config.run(&context, self);
        };
        let outputs = map_whole(operator, &context, self)?;
        self.outputs.extend(outputs);
        // A stage without rows has tables without rows.
        let types = config.output_types(&PortTypes::new()).unwrap_or_default();
        for (port, types) in types {
            if let [PortType::Table { schema, .. }] = &types[..] {
                let empty = || vec![RecordBatch::new_empty(Arc::clone(schema))];
                self.outputs.entry(port).or_insert_with(empty);
            }
        }
        Ok(())
    }

    /// All rows of an output port.
    pub(crate) fn output(&self, port: &str) -> RecordBatch {
        let batches = self
            .outputs
            .get(port)
            .unwrap_or_else(|| panic!("nothing was written to `{port}`"));
        concat_batches(&batches[0].schema(), batches).unwrap()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter_map(|event| {
                if let StageEvent::Warning(text) = event {
                    Some(text.clone())
                } else {
                    None
                }
            })
            .collect()
    }

    /// The digest under which some bytes were stored.
    pub(crate) fn digest(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        assert!(
            self.media.lock().unwrap().contains_key(&digest),
            "these bytes were stored"
        );
        digest
    }
}

impl engine_core::StageView for TestIo {
    fn inputs(&self, port: &str) -> &[Artifact] {
        self.artifacts.get(port).map_or(&[], Vec::as_slice)
    }

    fn input_ports(&self) -> Vec<String> {
        self.inputs.keys().cloned().collect()
    }

    fn read(&self, port: &str) -> Result<BatchReader, OperatorError> {
        let mut batches = Vec::new();
        for path in &self.inputs[port] {
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap())
                .unwrap()
                .build()
                .unwrap();
            batches.extend(reader.map(|batch| batch.map_err(OperatorError::from)));
        }
        Ok(Box::new(batches.into_iter()))
    }

    fn part_urls(&self, port: &str) -> Result<Vec<String>, OperatorError> {
        Ok(self.inputs[port]
            .iter()
            .map(|path| format!("file://{}", path.display()))
            .collect())
    }

    fn model_folder(&self, _port: &str) -> Result<PathBuf, OperatorError> {
        Err(OperatorError::Internal("no models here".to_owned()))
    }

    fn put_media(&self, bytes: &[u8]) -> Result<String, OperatorError> {
        let digest = Digest::of(bytes).to_string();
        self.media
            .lock()
            .unwrap()
            .insert(digest.clone(), bytes.to_vec());
        Ok(digest)
    }

    fn media(&self, digest: &str) -> Result<Vec<u8>, OperatorError> {
        Ok(self.media.lock().unwrap()[digest].clone())
    }

    fn scratch(&self) -> &Path {
        self.folder.path()
    }

    fn event(&self, event: StageEvent) {
        self.events.lock().unwrap().push(event);
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

impl StageIo for TestIo {
    fn write(&mut self, port: &str, batch: RecordBatch) -> Result<(), OperatorError> {
        let batch = without_dictionaries(&batch)?;
        self.outputs.entry(port.to_owned()).or_default().push(batch);
        Ok(())
    }

    fn write_model(&mut self, _port: &str, _folder: &Path) -> Result<(), OperatorError> {
        Err(OperatorError::Internal("no models here".to_owned()))
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

fn text<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    Arc::new(LargeStringArray::from_iter_values(values))
}

fn batch(table: TableName, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(table.schema(), columns).unwrap()
}

fn questions<'a>(ids: impl Iterator<Item = &'a str>) -> ArrayRef {
    let mut messages = MessagesBuilder::default();
    for id in ids {
        messages.message("user");
        messages.text(id);
        messages.end_row();
    }
    messages.finish()
}

/// Prompts: id, answer, category.
pub(crate) fn prompts(rows: &[(&str, Option<&str>, Option<&str>)]) -> RecordBatch {
    let answers: LargeStringArray = rows.iter().map(|row| row.1).collect();
    let categories: LargeStringArray = rows.iter().map(|row| row.2).collect();
    let columns: Vec<ArrayRef> = vec![
        text(rows.iter().map(|row| row.0)),
        questions(rows.iter().map(|row| row.0)),
        Arc::new(answers),
        Arc::new(LargeStringArray::new_null(rows.len())),
        Arc::new(categories),
        text(rows.iter().map(|_| "data")),
    ];
    batch(TableName::Prompts, columns)
}

/// Rollouts: prompt id, sample, text.
pub(crate) fn rollouts(rows: &[(&str, u32, &str)]) -> RecordBatch {
    let full: Vec<(&str, u32, &str, &[u32], &str)> = rows
        .iter()
        .map(|row| (row.0, row.1, row.2, &[1_u32][..], "stop"))
        .collect();
    rollouts_with_tokens(&full)
}

/// Rollouts: prompt id, sample, text, token ids, finish reason.
pub(crate) fn rollouts_with_tokens(rows: &[(&str, u32, &str, &[u32], &str)]) -> RecordBatch {
    let lists = |values: ArrayRef, item: DataType| -> ArrayRef {
        let DataType::LargeList(field) = schemas::tables::list(item) else {
            panic!("a list")
        };
        let offsets = OffsetBuffer::from_lengths(rows.iter().map(|row| row.3.len()));
        Arc::new(LargeListArray::new(field, offsets, values, None))
    };
    let tokens: Vec<u32> = rows.iter().flat_map(|row| row.3.to_vec()).collect();
    let logprobs = arrow::array::Float32Array::from(vec![-0.5; tokens.len()]);
    let columns: Vec<ArrayRef> = vec![
        text(rows.iter().map(|row| row.0)),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.1))),
        text(rows.iter().map(|row| row.2)),
        lists(Arc::new(UInt32Array::from(tokens)), DataType::UInt32),
        lists(Arc::new(logprobs), DataType::Float32),
        text(rows.iter().map(|row| row.4)),
        Arc::new(UInt32Array::from(vec![5; rows.len()])),
        text(rows.iter().map(|_| "m")),
        Arc::new(UInt64Array::from(vec![1; rows.len()])),
    ];
    batch(TableName::Rollouts, columns)
}

/// Verdicts: prompt id, sample, verdict, format.
pub(crate) fn verdicts(rows: &[(&str, u32, &str, bool)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        text(rows.iter().map(|row| row.0)),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.1))),
        text(rows.iter().map(|row| row.2)),
        Arc::new(LargeStringArray::new_null(rows.len())),
        Arc::new(BooleanArray::from(
            rows.iter().map(|row| row.3).collect::<Vec<_>>(),
        )),
        text(rows.iter().map(|_| "math 1")),
    ];
    batch(TableName::Verdicts, columns)
}

/// Scores: prompt id, sample, reward.
pub(crate) fn scores(rows: &[(&str, u32, f64)]) -> RecordBatch {
    let rewards: ArrayRef = Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2)));
    let samples = UInt32Array::from_iter_values(rows.iter().map(|row| row.1));
    let columns = vec![
        text(rows.iter().map(|row| row.0)),
        Arc::new(samples),
        Arc::clone(&rewards),
        Arc::clone(&rewards),
        rewards,
    ];
    batch(TableName::Scores, columns)
}

/// Examples: prompt id, text, origin.
pub(crate) fn examples(rows: &[(&str, &str, &str)]) -> RecordBatch {
    let DataType::LargeList(field) = schemas::tables::list(DataType::UInt32) else {
        panic!("a list")
    };
    let tokens = LargeListArray::new_null(field, rows.len());
    let columns: Vec<ArrayRef> = vec![
        text(rows.iter().map(|row| row.0)),
        questions(rows.iter().map(|row| row.0)),
        text(rows.iter().map(|row| row.1)),
        Arc::new(tokens),
        text(rows.iter().map(|row| row.2)),
        Arc::new(LargeStringArray::new_null(rows.len())),
    ];
    batch(TableName::Examples, columns)
}

/// A text column, nulls as empty texts.
pub(crate) fn text_values(batch: &RecordBatch, column: &str) -> Vec<String> {
    let array = batch.column_by_name(column).unwrap().as_string::<i64>();
    (0..array.len())
        .map(|row| {
            if array.is_null(row) {
                String::new()
            } else {
                array.value(row).to_owned()
            }
        })
        .collect()
}

pub(crate) fn floats(batch: &RecordBatch, column: &str) -> Vec<f64> {
    batch
        .column_by_name(column)
        .unwrap()
        .as_primitive::<Float64Type>()
        .values()
        .to_vec()
}
