//! The rows of a source's files as they are mapped: the columns that are used, under names of ours and in types of ours, so
//! that neither the spelling of a file nor its types count.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, LargeStringArray, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use engine_core::operator::BatchReader;
use engine_core::{Fault, OperatorError};
use schemas::tables::{TEXT, messages_type};

use super::batch::{batch, size};
use super::cell::Cell;
use super::convert::Converter;
use super::files::{self, DataFile, Format, Kind};
use super::layout::{self, Layout, Reading};
use super::media::Media;
use super::records::{Place, Record, Records, arrow_schema, locate, records};
use super::shape::Shape;
use super::table::{self, SourceFile};
use super::unique::UniqueRows;
use super::{Source, images};

/// Names of the columns that parts are made of.
pub(super) const ID: &str = "id";
pub(super) const PROBLEM: &str = "problem";
/// Conversations; their images are numbers of those in the row.
pub(super) const MESSAGES: &str = "messages";
pub(super) const ANSWER: &str = "answer";
pub(super) const SOLUTION: &str = "solution";
pub(super) const CATEGORY: &str = "category";
pub(super) const SOURCE: &str = "source";
pub(super) const IMAGES: &str = "images";
/// What was found wrong while reading.
pub(super) const FAULT: &str = "fault";

/// Rows that a file is judged by before it is read.
const SAMPLE: usize = 64;
/// Rows that are converted together at most, and their bytes, about.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 8 << 20;

/// A file of a source.
#[derive(Clone, Debug)]
struct Opened {
    file: DataFile,
    /// How many rows it has, where it says so.
    rows: Option<u64>,
    shape: Shape,
    /// Whether its columns are taken as they are.
    is_plain: bool,
}

/// The files of a source, checked.
#[derive(Clone, Debug)]
pub(super) struct Files {
    config: Source,
    reading: Reading,
    media: Media,
    files: Vec<Opened>,
    /// Images in folders that are named like their answers.
    classes: Arc<Vec<PathBuf>>,
    schema: SchemaRef,
}

impl Files {
    /// Finds the files and checks their columns.
    pub(super) fn open(config: &Source, root: &Path) -> Result<Self, Vec<Fault>> {
        let found = files::find(root, config).map_err(|fault| vec![fault])?;
        let full = root.join(&config.path);
        let media = match &config.media {
            Some(media) => Media::new(Some(&root.join(media))),
            None => Media::new(found.counts_whole.then_some(&full)),
        };
        if let Kind::Classes(paths) = found.kind {
            return Self::of_classes(config, media, paths).map_err(|fault| vec![fault]);
        }
        let mut files = Vec::new();
        let mut whole = Shape::Unknown;
        for file in found.files {
            let (shape, rows) = look(&file).map_err(|fault| vec![fault])?;
            whole = whole.and(shape.clone());
            files.push(Opened {
                file,
                rows,
                shape,
                is_plain: false,
            });
        }
        let name = files[0].file.path.display().to_string();
        let is_metadata = found.kind == Kind::Metadata;
        let reading =
            layout::resolve(config, &whole, &name, is_metadata).map_err(|fault| vec![fault])?;
        for opened in &mut files {
            let faults = opened.check(config, &reading);
            // The files of a folder tend to have the same fault; the first says enough.
            if !faults.is_empty() {
                return Err(faults);
            }
        }
        Ok(Self {
            config: config.clone(),
            schema: schema(&reading),
            reading,
            media,
            files,
            classes: Arc::default(),
        })
    }

    fn of_classes(config: &Source, media: Media, paths: Vec<PathBuf>) -> Result<Self, Fault> {
        if config.question.is_none() {
            return Err(Fault::new(
                "missing-key",
                format!("`{}` has images in folders, which have no question", config.path.display()),
            )
            .with_help(
                "write it, as in `question: \"What is in the picture?\"`; the name of an image's folder is the answer",
            ));
        }
        let mut mapped = config.clone();
        mapped.layout = Some(Layout::ImageFolder);
        mapped.columns.images = Some("image".to_owned());
        mapped.columns.answer = Some("label".to_owned());
        let reading = layout::resolve(&mapped, &Shape::Unknown, "", true)?;
        Ok(Self {
            config: config.clone(),
            schema: schema(&reading),
            reading,
            media,
            files: Vec::new(),
            classes: Arc::new(paths),
        })
    }

    /// Rows that are read, where that is known.
    pub(super) fn total(&self) -> Option<u64> {
        let in_files: u64 = self
            .files
            .iter()
            .map(|file| file.rows)
            .sum::<Option<u64>>()?;
        let all = in_files + self.classes.len() as u64;
        Some(self.config.limit.map_or(all, |limit| limit.min(all)))
    }

    /// Where a row is, for people.
    pub(super) fn place(&self, row: u64) -> Option<String> {
        if let Some(path) = self.classes.get(usize::try_from(row).ok()?) {
            return Some(path.display().to_string());
        }
        let mut row = row;
        for opened in &self.files {
            let rows = match opened.rows {
                Some(rows) if row < rows => {
                    return Some(place(&opened.file.path, Place::Row(row)));
                }
                Some(rows) => rows,
                None => match locate(&opened.file, row).ok()? {
                    Ok(found) => return Some(place(&opened.file.path, found)),
                    Err(rows) => rows,
                },
            };
            row -= rows;
        }
        None
    }

    /// All rows, in which a prompt that comes twice is marked as wrong.
    pub(super) fn read(self) -> BatchReader {
        let rows = RawRows::new(self.clone());
        if self.reading.layout == Layout::Solutions {
            return Box::new(rows);
        }
        Box::new(UniqueRows::new(self, rows))
    }

    pub(super) fn config(&self) -> &Source {
        &self.config
    }
}

impl Opened {
    /// Every column that is missing or of a wrong type.
    fn check(&mut self, config: &Source, reading: &Reading) -> Vec<Fault> {
        let name = self.file.path.display().to_string();
        if self.file.format == Format::Parquet && config.media.is_none() {
            match SourceFile::open(&self.file.path) {
                Ok(opened) if opened.is_plain(reading) => {
                    self.is_plain = true;
                    return opened.faults(reading, config.columns.images.is_some());
                }
                Ok(_) => {}
                Err(fault) => return vec![fault],
            }
        }
        reading.faults(&self.shape, &name)
    }
}

/// What a file holds: its columns, and how many rows where it says so.
fn look(file: &DataFile) -> Result<(Shape, Option<u64>), Fault> {
    let unreadable = |error: OperatorError| Fault::at("unreadable-file", "path", error.to_string());
    match file.format {
        Format::Parquet => {
            let opened = SourceFile::open(&file.path)?;
            Ok((Shape::of_schema(opened.schema()), Some(opened.rows())))
        }
        Format::Arrow => {
            let schema = arrow_schema(&file.path).map_err(unreadable)?;
            Ok((Shape::of_schema(&schema), None))
        }
        _ => {
            let (mut cells, mut first_fault) = (Vec::new(), None);
            for record in records(file, &[]).map_err(unreadable)?.take(SAMPLE) {
                let record = record.map_err(unreadable)?;
                match record.cell {
                    Ok(cell) => cells.push(cell),
                    Err(fault) => {
                        first_fault.get_or_insert((record.place, fault));
                    }
                }
            }
            match first_fault {
                Some((at, fault)) if cells.is_empty() => Err(Fault::at(
                    "unreadable-file",
                    "path",
                    format!("{}: {fault}", place(&file.path, at)),
                )),
                None if cells.is_empty() => Err(Fault::at(
                    "missing-rows",
                    "path",
                    format!("`{}` has no rows", file.path.display()),
                )),
                _ => Ok((Shape::of_rows(&cells), None)),
            }
        }
    }
}

fn schema(reading: &Reading) -> SchemaRef {
    let text = |name: &str| Field::new(name, TEXT, true);
    let layout = reading.layout;
    let mut fields = match layout {
        Layout::Solutions => Vec::new(),
        _ if layout.has_turns() => vec![Field::new(MESSAGES, messages_type(), false), text(ANSWER)],
        _ => vec![text(PROBLEM), text(ANSWER)],
    };
    for (name, is_there) in [
        (ID, reading.id.is_some()),
        (SOLUTION, reading.solution.is_some() || layout.has_turns()),
        (CATEGORY, reading.category.is_some()),
        (SOURCE, reading.source.is_some()),
    ] {
        if is_there {
            fields.push(text(name));
        }
    }
    if reading.images.is_some() || layout.has_turns() {
        fields.push(Field::new(IMAGES, images::list_type(), true));
    }
    fields.push(text(FAULT));
    Arc::new(Schema::new(fields))
}

fn place(path: &Path, at: Place) -> String {
    format!("{}, {at}", path.display())
}

/// The rows of all files in order, up to the limit.
pub(super) struct RawRows {
    files: Files,
    left: u64,
    waiting: VecDeque<Opened>,
    classes_left: bool,
    current: Option<BatchReader>,
}

impl RawRows {
    pub(super) fn new(files: Files) -> Self {
        Self {
            left: files.config.limit.unwrap_or(u64::MAX),
            waiting: files.files.iter().cloned().collect(),
            classes_left: !files.classes.is_empty(),
            files,
            current: None,
        }
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>, OperatorError> {
        while self.left > 0 {
            if let Some(reader) = &mut self.current {
                if let Some(batch) = reader.next() {
                    let batch = batch?;
                    let room = usize::try_from(self.left).unwrap_or(usize::MAX);
                    let batch = batch.slice(0, batch.num_rows().min(room));
                    self.left -= batch.num_rows() as u64;
                    return Ok(Some(batch));
                }
                self.current = None;
            }
            if std::mem::take(&mut self.classes_left) {
                let records = class_records(Arc::clone(&self.files.classes));
                self.current = Some(self.convert(records, Path::new("")));
                continue;
            }
            let Some(opened) = self.waiting.pop_front() else {
                break;
            };
            self.current = Some(self.open(&opened)?);
        }
        Ok(None)
    }

    fn open(&self, opened: &Opened) -> Result<BatchReader, OperatorError> {
        let path = &opened.file.path;
        let reading = &self.files.reading;
        if !opened.is_plain {
            let records = records(&opened.file, &reading.roots(&opened.shape))?;
            return Ok(self.convert(records, path.parent().unwrap_or(Path::new(""))));
        }
        let file = SourceFile::open(path).map_err(|fault| OperatorError::Data(fault.message))?;
        let (schema, reading) = (SchemaRef::clone(&self.files.schema), reading.clone());
        Ok(Box::new(
            file.batches(&self.files.reading)?
                .map(move |batch| conform(&schema, &reading, &batch?)),
        ))
    }

    fn convert(&self, records: Records, beside: &Path) -> BatchReader {
        Box::new(Converted {
            records,
            files: self.files.clone(),
            beside: beside.to_owned(),
        })
    }
}

/// Rows whose columns are taken as they are, under our names.
fn conform(
    schema: &SchemaRef,
    reading: &Reading,
    batch: &RecordBatch,
) -> Result<RecordBatch, OperatorError> {
    let column = |field: &Arc<Field>| -> Result<ArrayRef, OperatorError> {
        let name = match field.name().as_str() {
            PROBLEM => &reading.problem,
            ANSWER => &reading.answer,
            ID => &reading.id,
            SOLUTION => &reading.solution,
            CATEGORY => &reading.category,
            SOURCE => &reading.source,
            IMAGES => {
                let name = reading.images.as_ref();
                let column = name.and_then(|name| batch.column_by_name(name));
                return images::as_lists(column, batch.num_rows());
            }
            _ => &None,
        };
        Ok(match name {
            Some(name) => Arc::new(table::text(batch, name)?),
            None => Arc::new(LargeStringArray::new_null(batch.num_rows())),
        })
    };
    let arrays = schema.fields().iter().map(column);
    Ok(RecordBatch::try_new(
        SchemaRef::clone(schema),
        arrays.collect::<Result<_, _>>()?,
    )?)
}

fn class_records(paths: Arc<Vec<PathBuf>>) -> Records {
    Box::new((0..paths.len()).map(move |index| {
        let path = &paths[index];
        let folder = path
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        let text = |text: &str| Cell::Text(text.to_owned());
        let cell = match (folder, path.to_str()) {
            (Some(folder), Some(path)) => Ok(Cell::Struct(vec![
                ("image".to_owned(), text(path)),
                ("label".to_owned(), text(folder)),
            ])),
            _ => Err("its name is no text; rename the file or its folder".to_owned()),
        };
        Ok(Record {
            place: Place::Row(index as u64),
            cell,
        })
    }))
}

/// Rows that are read one by one.
struct Converted {
    records: Records,
    files: Files,
    beside: PathBuf,
}

impl Iterator for Converted {
    type Item = Result<RecordBatch, OperatorError>;

    fn next(&mut self) -> Option<Self::Item> {
        let converter = Converter {
            config: &self.files.config,
            reading: &self.files.reading,
            media: &self.files.media,
            beside: &self.beside,
        };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for record in self.records.by_ref() {
            let record = match record {
                Ok(record) => record,
                Err(error) => return Some(Err(error)),
            };
            let row = record.cell.and_then(|cell| converter.row(&cell));
            bytes += row.as_ref().map_or(64, size);
            rows.push(row);
            if rows.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                break;
            }
        }
        (!rows.is_empty()).then(|| batch(&self.files.schema, &rows))
    }
}

impl Iterator for RawRows {
    type Item = Result<RecordBatch, OperatorError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.next_batch().transpose();
        if matches!(item, Some(Err(_))) {
            self.left = 0;
        }
        item
    }
}
