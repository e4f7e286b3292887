//! The rows of a source's files as they are mapped: the columns that are used, under names of ours and in types of ours, so
//! that neither the spelling of a file nor its types count.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeListArray, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use engine_core::operator::BatchReader;
use engine_core::{Fault, OperatorError};
use schemas::tables::TEXT;

use super::table::{self, SourceFile};
use super::{Source, filled, images};

/// Names of the columns that parts are made of.
pub(super) const ID: &str = "id";
pub(super) const PROBLEM: &str = "problem";
pub(super) const ANSWER: &str = "answer";
pub(super) const SOLUTION: &str = "solution";
pub(super) const CATEGORY: &str = "category";
pub(super) const IMAGES: &str = "images";

/// The files of a source, checked.
#[derive(Clone, Debug)]
pub(super) struct Files {
    config: Source,
    /// Path and number of rows of each file.
    files: Vec<(PathBuf, u64)>,
    schema: SchemaRef,
}

impl Files {
    /// Finds the files and checks their columns.
    pub(super) fn open(config: &Source, root: &Path) -> Result<Self, OperatorError> {
        let data_error = |fault: Fault| OperatorError::Data(fault.message);
        let mut files = Vec::new();
        let mut has_images = false;
        for path in table::files(root, &config.path).map_err(data_error)? {
            let file = SourceFile::open(&path).map_err(data_error)?;
            if let Some(fault) = file.faults(&config.columns).into_iter().next() {
                return Err(data_error(fault));
            }
            has_images |= file.has_images(&config.columns);
            files.push((path, file.rows()));
        }
        Ok(Self {
            config: config.clone(),
            files,
            schema: schema(config, has_images),
        })
    }

    /// Rows that are read.
    pub(super) fn total(&self) -> u64 {
        let in_files = self.files.iter().map(|(_, rows)| rows).sum();
        self.config
            .limit
            .map_or(in_files, |limit| limit.min(in_files))
    }

    /// Where a row is, for people.
    pub(super) fn place(&self, row: u64) -> Option<String> {
        let mut row = row;
        for (path, rows) in &self.files {
            if row < *rows {
                return Some(place(path, row));
            }
            row -= rows;
        }
        None
    }

    /// All rows, in which a prompt that comes twice is an error.
    pub(super) fn read(self) -> BatchReader {
        let seen = HashSet::with_capacity_and_hasher(
            usize::try_from(self.total()).unwrap_or(0),
            BuildHasherDefault::default(),
        );
        let rows = RawRows::new(self.clone());
        Box::new(UniqueRows {
            files: self,
            rows,
            seen,
            row: 0,
        })
    }
}

fn schema(config: &Source, has_images: bool) -> SchemaRef {
    let columns = &config.columns;
    let text = |name: &str| Field::new(name, TEXT, true);
    let mut fields = vec![text(PROBLEM), text(ANSWER)];
    for (name, column) in [
        (ID, &columns.id),
        (SOLUTION, &columns.solution),
        (CATEGORY, &columns.category),
    ] {
        if column.is_some() {
            fields.push(text(name));
        }
    }
    if has_images {
        fields.push(Field::new(IMAGES, images::list_type(), true));
    }
    Arc::new(Schema::new(fields))
}

fn place(path: &Path, row: u64) -> String {
    format!("{}, row {row} (counted from 0)", path.display())
}

/// The rows of all files in order, up to the limit.
struct RawRows {
    config: Source,
    schema: SchemaRef,
    left: u64,
    files: VecDeque<PathBuf>,
    current: Option<BatchReader>,
}

impl RawRows {
    fn new(files: Files) -> Self {
        Self {
            left: files.total(),
            config: files.config,
            schema: files.schema,
            files: files.files.into_iter().map(|(path, _)| path).collect(),
            current: None,
        }
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>, OperatorError> {
        while self.left > 0 {
            if let Some(reader) = &mut self.current {
                if let Some(batch) = reader.next() {
                    let batch = self.conform(&batch?)?;
                    let room = usize::try_from(self.left).unwrap_or(usize::MAX);
                    let batch = batch.slice(0, batch.num_rows().min(room));
                    self.left -= batch.num_rows() as u64;
                    return Ok(Some(batch));
                }
                self.current = None;
            }
            let Some(path) = self.files.pop_front() else {
                break;
            };
            let file =
                SourceFile::open(&path).map_err(|fault| OperatorError::Data(fault.message))?;
            self.current = Some(Box::new(file.batches(&self.config.columns)?));
        }
        Ok(None)
    }

    fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch, OperatorError> {
        let columns = &self.config.columns;
        let arrays: Vec<ArrayRef> = self
            .schema
            .fields()
            .iter()
            .map(|field| -> Result<ArrayRef, OperatorError> {
                let name = match field.name().as_str() {
                    PROBLEM => &columns.problem,
                    ANSWER => &columns.answer,
                    ID => columns.id.as_ref().expect("it is in the schema"),
                    SOLUTION => columns.solution.as_ref().expect("it is in the schema"),
                    CATEGORY => columns.category.as_ref().expect("it is in the schema"),
                    _ => {
                        let name = columns.images_in(batch.schema_ref());
                        let images = name.and_then(|name| batch.column_by_name(name));
                        return images::as_lists(images, batch.num_rows());
                    }
                };
                Ok(Arc::new(table::text(batch, name)?))
            })
            .collect::<Result<_, _>>()?;
        Ok(RecordBatch::try_new(
            SchemaRef::clone(&self.schema),
            arrays,
        )?)
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

/// What makes a prompt that prompt: its id, or else everything in it.
type Identity = [u8; 32];

/// Rows of which no two have one identity.
struct UniqueRows {
    files: Files,
    rows: RawRows,
    /// First digits of the identities: enough to say that a row is new. What looks old is compared in full.
    seen: HashSet<u64, BuildHasherDefault<Digits>>,
    row: u64,
}

impl UniqueRows {
    fn check(&mut self, batch: &RecordBatch) -> Result<(), OperatorError> {
        for (row, identity) in identities(batch).into_iter().enumerate() {
            let Some(identity) = identity else { continue };
            let digits = u64::from_le_bytes(identity[..8].try_into().expect("eight bytes"));
            if !self.seen.insert(digits) {
                self.look_back(self.row + row as u64, &identity, batch, row)?;
            }
        }
        self.row += batch.num_rows() as u64;
        Ok(())
    }

    /// Reads the rows before this one again, to name the one with the same identity, if there really is one.
    fn look_back(
        &self,
        row: u64,
        identity: &Identity,
        batch: &RecordBatch,
        index: usize,
    ) -> Result<(), OperatorError> {
        let mut first = 0;
        for earlier in RawRows::new(self.files.clone()) {
            let earlier = earlier?;
            let found = identities(&earlier)
                .iter()
                .position(|other| other.as_ref() == Some(identity))
                .map(|found| first + found as u64);
            if let Some(found) = found.filter(|found| *found < row) {
                return Err(self.twice(row, found, batch, index));
            }
            first += earlier.num_rows() as u64;
            if first >= row {
                break;
            }
        }
        Ok(())
    }

    fn twice(&self, row: u64, earlier: u64, batch: &RecordBatch, index: usize) -> OperatorError {
        let place = |row| {
            self.files
                .place(row)
                .unwrap_or_else(|| format!("row {row}"))
        };
        let (here, there) = (place(row), place(earlier));
        let message = match batch.column_by_name(ID) {
            Some(ids) => format!(
                "{here}: the id `{}` is also in {there}; ids must be unique",
                ids.as_string::<i64>().value(index)
            ),
            None => format!(
                "{here}: the same prompt is also in {there}; remove one, or name an id column with `columns: {{ id: ... }}`"
            ),
        };
        OperatorError::Data(message)
    }
}

impl Iterator for UniqueRows {
    type Item = Result<RecordBatch, OperatorError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.rows.next()? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        Some(self.check(&batch).map(|()| batch))
    }
}

/// The identity of every row; none for a row that has none and cannot become a prompt.
fn identities(batch: &RecordBatch) -> Vec<Option<Identity>> {
    let text = |name: &str| batch.column_by_name(name).map(AsArray::as_string::<i64>);
    let (ids, problems, answers) = (text(ID), text(PROBLEM), text(ANSWER));
    let images: Option<&LargeListArray> = batch.column_by_name(IMAGES).map(AsArray::as_list::<i64>);
    (0..batch.num_rows())
        .map(|row| {
            let mut hasher = blake3::Hasher::new();
            let mut add = |bytes: &[u8]| {
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            };
            if let Some(ids) = ids {
                add(filled(ids, row)?.as_bytes());
                return Some(*hasher.finalize().as_bytes());
            }
            add(filled(problems?, row)?.as_bytes());
            add(filled(answers?, row)?.as_bytes());
            if let Some(images) = images.filter(|images| images.is_valid(row)) {
                let items = images.value(row);
                let items = items.as_binary::<i64>();
                for item in items {
                    add(item.unwrap_or_default());
                }
            }
            Some(*hasher.finalize().as_bytes())
        })
        .collect()
}

/// Passes digits of a digest on: they are as good as hashed.
#[derive(Default)]
struct Digits(u64);

impl Hasher for Digits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, digits: u64) {
        self.0 = digits;
    }
}
