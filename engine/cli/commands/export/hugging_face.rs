//! A dataset as a folder that `datasets.load_dataset` of Hugging Face reads: a card, and Parquet shards with the features
//! in their metadata. Images, which tables refer to by digest, go with the rows.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{
    Array, ArrayRef, AsArray as _, BinaryBuilder, LargeListArray, StringBuilder, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use engine_core::Dataset;
use engine_store::{ParquetFile, Store};
use schemas::tables::messages_type;
use serde_json::{Map, Value, json};

use super::{Exported, card};

/// Bytes of a shard, about, as Hugging Face has them.
const SHARD_BYTES: usize = 500 << 20;
/// Bytes of images that are held in memory at once.
const IMAGE_BYTES: usize = 64 << 20;
/// The column whose images are exported.
const MESSAGES: &str = "messages";
/// The column that gets them, in the order in which the messages name them.
const IMAGES: &str = "images";

pub(super) fn write(
    store: &Store,
    exported: &Exported,
    dataset: &Dataset,
    split: &str,
    folder: &Path,
) -> anyhow::Result<()> {
    let schema = store.schema(dataset)?;
    let with_images = has_images(&schema);
    let schema = target_schema(&schema, with_images);
    let mut shards = Shards {
        folder: folder.join("data"),
        schema: SchemaRef::clone(&schema),
        open: None,
        closed: 0,
    };
    fs::create_dir(&shards.folder)
        .with_context(|| format!("could not make {}", shards.folder.display()))?;
    for batch in store.read(dataset) {
        let batch = batch?;
        if with_images {
            write_with_images(store, &batch, &schema, &mut shards)?;
        } else {
            shards.write(&batch.with_schema(SchemaRef::clone(&schema))?)?;
        }
    }
    shards.finish(split)?;
    let text = card::text(exported, dataset, &schema, split);
    let path = folder.join("README.md");
    fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))
}

fn has_images(schema: &Schema) -> bool {
    schema.field_with_name(IMAGES).is_err()
        && schema
            .field_with_name(MESSAGES)
            .is_ok_and(|field| field.data_type().equals_datatype(&messages_type()))
}

/// The columns with those of the images, and what `datasets` must know of them.
fn target_schema(schema: &Schema, with_images: bool) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().map(Arc::clone).collect();
    let mut features: Map<String, Value> = fields
        .iter()
        .map(|field| (field.name().clone(), feature(field.data_type())))
        .collect();
    if with_images {
        fields.push(Arc::new(Field::new(IMAGES, images_type(), true)));
        let images = json!({ "feature": { "_type": "Image" }, "_type": "LargeList" });
        features.insert(IMAGES.to_owned(), images);
    }
    let info = json!({ "info": { "features": features } });
    let metadata = HashMap::from([("huggingface".to_owned(), info.to_string())]);
    Arc::new(Schema::new(fields).with_metadata(metadata))
}

/// `datasets` takes a column for images only if its type is the very one that it would write, nulls allowed.
fn images_type() -> DataType {
    DataType::LargeList(image_item())
}

fn image_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(image_fields()), true))
}

/// An image as `datasets` keeps it.
fn image_fields() -> Fields {
    Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ])
}

/// A column type in the words of `datasets`.
fn feature(data_type: &DataType) -> Value {
    let value = |name: &str| json!({ "dtype": name, "_type": "Value" });
    match data_type {
        DataType::Utf8 | DataType::Utf8View => value("string"),
        DataType::LargeUtf8 => value("large_string"),
        DataType::Binary | DataType::BinaryView => value("binary"),
        DataType::LargeBinary => value("large_binary"),
        DataType::Boolean => value("bool"),
        DataType::LargeList(item) => {
            json!({ "feature": feature(item.data_type()), "_type": "LargeList" })
        }
        DataType::List(item) => {
            json!({ "feature": feature(item.data_type()), "_type": "List" })
        }
        DataType::FixedSizeList(item, length) => {
            json!({ "feature": feature(item.data_type()), "length": length, "_type": "List" })
        }
        DataType::Struct(fields) => fields
            .iter()
            .map(|field| (field.name().clone(), feature(field.data_type())))
            .collect::<Map<_, _>>()
            .into(),
        // Numbers are called alike in both, but for their case.
        other => value(&other.to_string().to_lowercase()),
    }
}

/// Writes rows with their images, so many at a time that the images fit into memory.
fn write_with_images(
    store: &Store,
    batch: &RecordBatch,
    schema: &SchemaRef,
    shards: &mut Shards,
) -> anyhow::Result<()> {
    let digests = image_digests(batch)?;
    let mut images = Images::default();
    let mut start = 0;
    for (row, digests) in digests.iter().enumerate() {
        for digest in digests {
            let bytes = store
                .media(digest)
                .with_context(|| format!("could not read the image {digest}"))?;
            images.push(digest, &bytes);
        }
        images.ends.push(digests.len());
        if images.bytes > IMAGE_BYTES {
            shards.write(&joined(batch, start..row + 1, &mut images, schema)?)?;
            start = row + 1;
        }
    }
    if start < batch.num_rows() {
        shards.write(&joined(
            batch,
            start..batch.num_rows(),
            &mut images,
            schema,
        )?)?;
    }
    Ok(())
}

/// Digests of the images that the messages of each row name, in their order.
fn image_digests(batch: &RecordBatch) -> anyhow::Result<Vec<Vec<String>>> {
    let column = batch
        .column_by_name(MESSAGES)
        .context("the column was found in the schema")?;
    let rows = column.as_list::<i64>();
    (0..rows.len())
        .map(|row| {
            if rows.is_null(row) {
                return Ok(Vec::new());
            }
            let messages = rows.value(row);
            let contents = messages
                .as_struct()
                .column_by_name("content")
                .context("messages have a content")?;
            let contents = contents.as_list::<i64>();
            let mut digests = Vec::new();
            for message in 0..contents.len() {
                let parts = contents.value(message);
                let images = parts
                    .as_struct()
                    .column_by_name("image")
                    .context("contents have an image")?;
                digests.extend(
                    images
                        .as_string::<i64>()
                        .iter()
                        .flatten()
                        .map(str::to_owned),
                );
            }
            Ok(digests)
        })
        .collect()
}

/// Images of some rows.
#[derive(Default)]
struct Images {
    data: BinaryBuilder,
    paths: StringBuilder,
    /// Number of images of each row.
    ends: Vec<usize>,
    bytes: usize,
}

impl Images {
    fn push(&mut self, digest: &str, bytes: &[u8]) {
        self.data.append_value(bytes);
        self.paths
            .append_value(format!("{digest}.{}", extension(bytes)));
        self.bytes += bytes.len();
    }

    /// The images so far as a column; the next rows start anew.
    fn take(&mut self) -> anyhow::Result<ArrayRef> {
        let columns: Vec<ArrayRef> =
            vec![Arc::new(self.data.finish()), Arc::new(self.paths.finish())];
        let images = StructArray::try_new(image_fields(), columns, None)?;
        let offsets = OffsetBuffer::from_lengths(std::mem::take(&mut self.ends));
        self.bytes = 0;
        Ok(Arc::new(LargeListArray::try_new(
            image_item(),
            offsets,
            Arc::new(images),
            None,
        )?))
    }
}

/// How a file of this kind is usually called.
fn extension(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [0xff, 0xd8, 0xff, ..] => "jpg",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        [b'G', b'I', b'F', b'8', ..] => "gif",
        [b'B', b'M', ..] => "bmp",
        _ => "bin",
    }
}

fn joined(
    batch: &RecordBatch,
    rows: Range<usize>,
    images: &mut Images,
    schema: &SchemaRef,
) -> anyhow::Result<RecordBatch> {
    let mut columns = batch.slice(rows.start, rows.len()).columns().to_vec();
    columns.push(images.take()?);
    Ok(RecordBatch::try_new(SchemaRef::clone(schema), columns)?)
}

/// Parquet files of bounded size.
struct Shards {
    folder: PathBuf,
    schema: SchemaRef,
    open: Option<ParquetFile>,
    closed: usize,
}

impl Shards {
    fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let mut file = match self.open.take() {
            Some(file) => file,
            None => self.begin()?,
        };
        file.write(batch)?;
        if file.bytes() >= SHARD_BYTES {
            file.finish()?;
            self.closed += 1;
        } else {
            self.open = Some(file);
        }
        Ok(())
    }

    /// Ends the last shard, and names all of them now that their number is known.
    fn finish(mut self, split: &str) -> anyhow::Result<()> {
        if self.open.is_none() && self.closed == 0 {
            self.open = Some(self.begin()?);
        }
        if let Some(file) = self.open.take() {
            file.finish()?;
            self.closed += 1;
        }
        for index in 0..self.closed {
            let name = format!("{split}-{index:05}-of-{:05}.parquet", self.closed);
            fs::rename(self.draft(index), self.folder.join(&name))
                .with_context(|| format!("could not write {name}"))?;
        }
        Ok(())
    }

    fn begin(&self) -> anyhow::Result<ParquetFile> {
        let path = self.draft(self.closed);
        Ok(ParquetFile::create(&path, SchemaRef::clone(&self.schema))?)
    }

    fn draft(&self, index: usize) -> PathBuf {
        self.folder.join(format!("shard-{index}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_types_have_the_names_that_datasets_knows() {
        let list = DataType::LargeList(Arc::new(Field::new("item", DataType::Float32, false)));
        assert_eq!(
            feature(&list),
            json!({ "feature": { "dtype": "float32", "_type": "Value" }, "_type": "LargeList" })
        );
        assert_eq!(feature(&DataType::UInt64)["dtype"], "uint64");
        assert_eq!(feature(&DataType::LargeUtf8)["dtype"], "large_string");
        let nested = DataType::Struct(Fields::from(vec![Field::new("a", list, true)]));
        assert_eq!(feature(&nested)["a"]["_type"], "LargeList");
    }
}
