//! The rows of a data file of any format, one after the other, each with its place.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::{FileReader, StreamReader};
use engine_core::OperatorError;
use engine_core::operator::BatchReader;

use super::cell::Cell;
use super::files::{DataFile, Format, open_text};
use super::json;
use super::pieces::{BOM, Lines, Piece, Values};
use super::table::SourceFile;

/// Where a row is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A line, counted from 1.
    Line(u64),
    /// A row, counted from 0.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(formatter, "line {line}"),
            Self::Row(row) => write!(formatter, "row {row} (counted from 0)"),
        }
    }
}

/// A row as it is in the file, or why it cannot be read.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) place: Place,
    pub(super) cell: Result<Cell, String>,
}

/// Rows in order.
pub(super) type Records = Box<dyn Iterator<Item = Result<Record, OperatorError>> + Send>;

/// The rows of a file. `roots` are the columns that are used; a format that can leaves the others out.
pub(super) fn records(file: &DataFile, roots: &[String]) -> Result<Records, OperatorError> {
    match file.format {
        Format::Parquet => {
            let opened =
                SourceFile::open(&file.path).map_err(|fault| OperatorError::Data(fault.message))?;
            Ok(of_batches(Box::new(opened.some_batches(roots)?)))
        }
        Format::Arrow => Ok(of_batches(arrow_batches(&file.path, roots)?)),
        Format::Lines | Format::Json => {
            let read = |piece: Piece| Record {
                place: Place::Line(piece.line),
                cell: read_json(&piece),
            };
            Ok(Box::new(pieces(file)?.map(move |piece| piece.map(read))))
        }
        Format::Table(delimiter) => table(&file.path, delimiter),
    }
}

/// Where the row of this number is, or how many rows the file has if there are fewer.
pub(super) fn locate(file: &DataFile, row: u64) -> Result<Result<Place, u64>, OperatorError> {
    let nth = |mut places: Box<dyn Iterator<Item = Result<Place, OperatorError>>>| {
        let mut count = 0;
        for place in places.by_ref() {
            if count == row {
                return place.map(Ok);
            }
            count += u64::from(place.is_ok());
        }
        Ok(Err(count))
    };
    match file.format {
        Format::Lines | Format::Json => nth(Box::new(
            pieces(file)?.map(|piece| piece.map(|piece| Place::Line(piece.line))),
        )),
        _ => {
            let records = records(file, &[])?;
            nth(Box::new(records.map(|record| Ok(record?.place))))
        }
    }
}

fn of_batches(batches: BatchReader) -> Records {
    let mut first = 0;
    let rows = batches.flat_map(move |batch| -> Records {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        let start = first;
        first += batch.num_rows() as u64;
        let rows = (0..batch.num_rows()).map(move |row| {
            Ok(Record {
                place: Place::Row(start + row as u64),
                cell: Ok(of_row(&batch, row)?),
            })
        });
        Box::new(rows)
    });
    Box::new(rows)
}

fn of_row(batch: &RecordBatch, row: usize) -> Result<Cell, OperatorError> {
    let schema = batch.schema_ref();
    let columns = schema.fields().iter().zip(batch.columns());
    let cells = columns.map(|(field, column)| {
        let cell = Cell::of_arrow(column.as_ref(), row)?;
        Ok((field.name().clone(), cell))
    });
    Ok(Cell::Struct(cells.collect::<Result<_, OperatorError>>()?))
}

/// Why a file ends before its end.
fn broken(path: &Path, error: &dyn fmt::Display) -> OperatorError {
    OperatorError::Data(format!(
        "`{}` cannot be read to its end: {error}; copy or download the file again",
        path.display()
    ))
}

fn open_arrow(path: &Path) -> Result<(BufReader<File>, bool), OperatorError> {
    let failed = |source| OperatorError::File {
        message: "cannot open the data file".to_owned(),
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let mut start = Vec::new();
    (&mut file)
        .take(6)
        .read_to_end(&mut start)
        .map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok((BufReader::new(file), start == b"ARROW1"))
}

/// The columns of an Arrow file.
pub(super) fn arrow_schema(path: &Path) -> Result<SchemaRef, OperatorError> {
    let (file, is_file) = open_arrow(path)?;
    if is_file {
        let reader = FileReader::try_new(file, None).map_err(|error| broken(path, &error))?;
        return Ok(reader.schema());
    }
    let reader = StreamReader::try_new(file, None).map_err(|error| broken(path, &error))?;
    Ok(reader.schema())
}

fn arrow_batches(path: &Path, roots: &[String]) -> Result<BatchReader, OperatorError> {
    let schema = arrow_schema(path)?;
    let used = schema.fields().iter().enumerate();
    let used = used
        .filter(|(_, field)| roots.contains(field.name()))
        .map(|(index, _)| index)
        .collect();
    let (file, is_file) = open_arrow(path)?;
    let path = path.to_owned();
    if is_file {
        let reader =
            FileReader::try_new(file, Some(used)).map_err(|error| broken(&path, &error))?;
        return Ok(Box::new(
            reader.map(move |batch| batch.map_err(|error| broken(&path, &error))),
        ));
    }
    let reader = StreamReader::try_new(file, Some(used)).map_err(|error| broken(&path, &error))?;
    Ok(Box::new(reader.map(move |batch| {
        batch.map_err(|error| broken(&path, &error))
    })))
}

type Pieces = Box<dyn Iterator<Item = Result<Piece, OperatorError>> + Send>;

fn pieces(file: &DataFile) -> Result<Pieces, OperatorError> {
    let reader = open_text(&file.path)?;
    let path = file.path.clone();
    let told = move |piece: std::io::Result<Piece>| piece.map_err(|error| broken(&path, &error));
    Ok(match file.format {
        Format::Lines => Box::new(Lines::new(reader).map(told)),
        _ => Box::new(Values::new(reader).map(told)),
    })
}

fn read_json(piece: &Piece) -> Result<Cell, String> {
    let bytes = piece.bytes.trim_ascii_end();
    match json::parse(bytes) {
        Ok(cell @ Cell::Struct(_)) => Ok(cell),
        Ok(other) => Err(format!(
            "it is {} and not an object; each row is an object with the columns as names",
            other.kind()
        )),
        Err(fault) => {
            let before = &bytes[..fault.at.min(bytes.len())];
            let lines = memchr::memchr_iter(b'\n', before).count() as u64;
            let start = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
            let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
            let line = if lines == 0 {
                String::new()
            } else {
                format!("line {}, ", piece.line + lines)
            };
            Err(format!(
                "it is no JSON: {}, at {line}column {column}",
                fault.what
            ))
        }
    }
}

fn table(path: &Path, delimiter: u8) -> Result<Records, OperatorError> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .from_reader(open_text(path)?);
    let path = path.to_owned();
    let header = reader
        .byte_headers()
        .map_err(|error| broken(&path, &error))?;
    let mut names = Vec::new();
    for (index, name) in header.iter().enumerate() {
        let name = if index == 0 {
            name.strip_prefix(BOM).unwrap_or(name)
        } else {
            name
        };
        let name = std::str::from_utf8(name).map_err(|error| broken(&path, &error))?;
        if names.iter().any(|known| known == name) {
            return Err(OperatorError::Data(format!(
                "`{}` has two columns `{name}`; rename one in the first line",
                path.display()
            )));
        }
        names.push(name.to_owned());
    }
    Ok(Box::new(reader.into_byte_records().map(move |record| {
        let record = record.map_err(|error| broken(&path, &error))?;
        let line = record.position().map_or(0, csv::Position::line);
        Ok(Record {
            place: Place::Line(line),
            cell: of_fields(&names, &record),
        })
    })))
}

fn of_fields(names: &[String], record: &csv::ByteRecord) -> Result<Cell, String> {
    if record.len() != names.len() {
        return Err(format!(
            "it has {} fields and the first line has {}; quote fields that have the separator or line ends in them",
            record.len(),
            names.len()
        ));
    }
    let cells = names.iter().zip(record.iter()).map(|(name, field)| {
        let text = std::str::from_utf8(field)
            .map_err(|_| format!("column `{name}` is no UTF-8; save the file as UTF-8"))?;
        let cell = if text.is_empty() {
            Cell::Null
        } else {
            Cell::Text(text.to_owned())
        };
        Ok((name.clone(), cell))
    });
    Ok(Cell::Struct(cells.collect::<Result<_, String>>()?))
}
