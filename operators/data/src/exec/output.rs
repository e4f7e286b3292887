//! What a program's output must be, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options, concat_batches, filter};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use engine_core::{FailedRow, Fault};
use schemas::problem::nearest;

use super::columns::ColumnType;
use super::stream::Written;
use super::{Exec, RowsRule};

/// The column with which a program says that a row could not be computed.
const ERROR: &str = "error";

/// The columns of the output port, or all that is wrong with what the pipeline says about them.
pub(super) fn schema(config: &Exec, input: &Schema) -> Result<SchemaRef, Vec<Fault>> {
    let mut faults = Vec::new();
    check_names(config, input, &mut faults);
    check_written(config, &mut faults);
    let schema = layout(config, input);
    check_table(config, &schema, &mut faults);
    if schema.fields().is_empty() && faults.is_empty() {
        faults.push(Fault::at(
            "wrong-value",
            "output",
            "the output has no columns",
        ));
    }
    if faults.is_empty() {
        Ok(schema)
    } else {
        Err(faults)
    }
}

/// The columns of the output port: those of the table in its order, then what is kept, then what else is written.
pub(super) fn layout(config: &Exec, input: &Schema) -> SchemaRef {
    let table = config.output.table.schema();
    let kept = config.keep.iter().filter_map(|name| {
        let field = input.field_with_name(name).ok()?;
        Some(Arc::new(field.clone()))
    });
    let written = config.output.columns.iter().map(|(name, column)| {
        let other = || Field::new(name, column.storage(), column.is_nullable);
        let field = table.field_with_name(name).cloned();
        Arc::new(field.unwrap_or_else(|_| other()))
    });
    let mut fields: Vec<FieldRef> = kept.chain(written).collect();
    fields.sort_by_key(|field| table.index_of(field.name()).unwrap_or(usize::MAX));
    Arc::new(Schema::new(fields))
}

/// Columns to write that cannot be.
fn check_written(config: &Exec, faults: &mut Vec<Fault>) {
    let table = config.output.table.schema();
    for (name, column) in &config.output.columns {
        let mut fault = |message: String| {
            faults.push(Fault {
                path: vec!["output".to_owned(), "columns".to_owned(), name.clone()],
                message,
                help: None,
                code: "wrong-value",
            });
        };
        if config.errors && name == ERROR {
            fault("`errors: true` adds the column `error`, which is no output".to_owned());
        }
        if config.keep.contains(name) {
            fault(format!("the column `{name}` is kept and written"));
        }
        let of_table = format!("`{name}` of the table `{}`", config.output.table);
        match table.field_with_name(name) {
            Ok(field) if !column.takes(field.data_type()) => {
                let found = field.data_type();
                fault(format!("{of_table} is {found}, which is not `{column}`"));
            }
            Ok(field) if column.is_nullable && !field.is_nullable() => {
                fault(format!("{of_table} is never null, and `{column}` may be"));
            }
            _ => {}
        }
    }
}

/// Columns that are asked for and are not there, or twice.
fn check_names(config: &Exec, input: &Schema, faults: &mut Vec<Fault>) {
    let there: Vec<&str> = input.fields().iter().map(|f| f.name().as_str()).collect();
    let given = config.columns.as_deref();
    if given.is_some_and(<[String]>::is_empty) {
        faults.push(
            Fault::at("wrong-value", "columns", "the program would get no column")
                .with_help("name a column, or leave `columns` out: then it gets all"),
        );
    }
    for (key, names) in [
        ("columns", given.unwrap_or_default()),
        ("keep", &config.keep),
    ] {
        for (index, name) in names.iter().enumerate() {
            let place = vec![key.to_owned(), index.to_string()];
            if names[..index].contains(name) {
                faults.push(Fault {
                    path: place,
                    message: format!("`{name}` is listed twice"),
                    help: None,
                    code: "wrong-value",
                });
            } else if !there.contains(&name.as_str()) {
                let near = nearest(name, &there)
                    .map(|near| format!("did you mean `{near}`? "))
                    .unwrap_or_default();
                faults.push(Fault {
                    path: place,
                    message: format!("the input has no column `{name}`"),
                    help: Some(format!("{near}its columns are {}", there.join(", "))),
                    code: "missing-column",
                });
            }
        }
    }
}

/// Columns of the declared table that the output lacks, or keeps in another type.
fn check_table(config: &Exec, output: &Schema, faults: &mut Vec<Fault>) {
    let table = config.output.table;
    for wanted in table.schema().fields() {
        let name = wanted.name();
        if config.output.columns.contains_key(name) {
            continue;
        }
        let of_table = format!("`{name}` of the table `{table}`");
        let message = match output.field_with_name(name) {
            Ok(kept) if kept.data_type() != wanted.data_type() => format!(
                "{of_table} is {}, and the kept column is {}",
                wanted.data_type(),
                kept.data_type()
            ),
            Ok(kept) if kept.is_nullable() && !wanted.is_nullable() => {
                format!("{of_table} is never null, and the kept column may be")
            }
            Ok(_) => continue,
            // It is kept and not there, which was said.
            Err(_) if config.keep.contains(name) => continue,
            Err(_) => format!("the table `{table}` has a column `{name}`, and the output has none"),
        };
        faults.push(Fault {
            path: vec!["output".to_owned(), "table".to_owned()],
            message,
            help: Some(
                "name it in `keep` or in `output.columns`, or set `table: rows`, which is any table"
                    .to_owned(),
            ),
            code: "missing-column",
        });
    }
}

/// Output rows and failed rows of what the program wrote for `rows`. An error goes on from "the program".
pub(super) fn take_rows(
    config: &Exec,
    schema: &SchemaRef,
    rows: &RecordBatch,
    written: &Written,
) -> Result<(RecordBatch, Vec<FailedRow>), String> {
    check_found(config, &written.schema)?;
    let is_one_to_one = config.rows == RowsRule::OneToOne;
    let num_rows: usize = written.batches.iter().map(RecordBatch::num_rows).sum();
    if is_one_to_one && num_rows != rows.num_rows() {
        return Err(format!(
            "wrote {num_rows} rows for {}, and `rows: one-to-one` says that there is one for each, in the same order",
            rows.num_rows()
        ));
    }
    let given = concat_batches(&written.schema, &written.batches)
        .map_err(|error| format!("wrote rows that do not fit together: {error}"))?;
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        columns.push(if config.output.columns.contains_key(field.name()) {
            stored(&given, field)?
        } else {
            let kept = rows.column_by_name(field.name());
            Arc::clone(kept.expect("columns to keep were found in the input"))
        });
    }
    let mut failed = if config.errors {
        said(&given)?
    } else {
        BTreeMap::new()
    };
    for (field, column) in schema.fields().iter().zip(&columns) {
        if !config.output.columns.contains_key(field.name()) {
            continue;
        }
        for row in not_finite(column) {
            let message = format!("the number in column `{}` is not finite", field.name());
            if !is_one_to_one {
                return Err(format!(
                    "wrote a row, the {row}. counted from 0, where {message}"
                ));
            }
            failed.entry(row).or_insert(message);
        }
    }
    let good: BooleanArray = (0..given.num_rows())
        .map(|row| Some(!failed.contains_key(&row)))
        .collect();
    for (field, column) in schema.fields().iter().zip(&columns) {
        let missing = (0..column.len())
            .find(|row| column.is_null(*row) && good.value(*row) && !field.is_nullable());
        if let Some(row) = missing {
            return Err(format!(
                "wrote null in column `{name}`, row {row} of its output (counted from 0); a column that may be null is declared \
                 with a `?` after its type",
                name = field.name()
            ));
        }
    }
    if !failed.is_empty() {
        let filtered: Result<Vec<ArrayRef>, _> =
            columns.iter().map(|column| filter(column, &good)).collect();
        columns = filtered.map_err(|error| error.to_string())?;
    }
    let options = RecordBatchOptions::new().with_row_count(Some(good.true_count()));
    let output = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|error| format!("wrote rows that are not as declared: {error}"))?;
    let failed = failed
        .into_iter()
        .map(|(row, error)| FailedRow { row, error })
        .collect();
    Ok((output, failed))
}

/// Compares the columns that were written with the declared ones.
fn check_found(config: &Exec, found: &Schema) -> Result<(), String> {
    let mut expected: BTreeMap<&str, ColumnType> = config
        .output
        .columns
        .iter()
        .map(|(name, column)| (name.as_str(), *column))
        .collect();
    if config.errors {
        expected.insert(ERROR, ColumnType::ERROR);
    }
    let names: BTreeSet<&str> = found.fields().iter().map(|f| f.name().as_str()).collect();
    let is_same = found.fields().len() == expected.len()
        && names.len() == expected.len()
        && found.fields().iter().all(|field| {
            expected
                .get(field.name().as_str())
                .is_some_and(|column| column.takes(field.data_type()))
        });
    if is_same {
        return Ok(());
    }
    let expected: Vec<String> = expected
        .iter()
        .map(|(name, column)| format!("{name}: {column}"))
        .collect();
    let found: Vec<String> = found
        .fields()
        .iter()
        .map(|field| format!("{}: {}", field.name(), field.data_type()))
        .collect();
    Err(format!(
        "wrote other columns than the pipeline declares; expected {{{}}}, found {{{}}}",
        expected.join(", "),
        found.join(", ")
    ))
}

/// A written column in the type that is stored.
fn stored(given: &RecordBatch, field: &Field) -> Result<ArrayRef, String> {
    let column = given
        .column_by_name(field.name())
        .expect("the written columns were compared with the declared ones");
    convert(column, field.data_type()).map_err(|error| {
        format!(
            "wrote a column `{}` that cannot be stored: {error}",
            field.name()
        )
    })
}

fn convert(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    // A value that does not fit is an error, not a null.
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(column, to, &options)
}

/// The rows of which the program says that they could not be computed.
fn said(given: &RecordBatch) -> Result<BTreeMap<usize, String>, String> {
    let field = Field::new(ERROR, ColumnType::ERROR.storage(), true);
    let column = stored(given, &field)?;
    let texts = column.as_string::<i64>().iter().enumerate();
    Ok(texts
        .filter_map(|(row, text)| Some((row, text.filter(|text| !text.is_empty())?.to_owned())))
        .collect())
}

/// Rows with a number, alone or in a list, that is NaN or infinite.
fn not_finite(column: &ArrayRef) -> Vec<usize> {
    let bad = |numbers: &dyn Array| -> Vec<usize> {
        let numbers = numbers.as_primitive::<Float64Type>().iter().enumerate();
        numbers
            .filter(|(_, number)| number.is_some_and(|number| !number.is_finite()))
            .map(|(row, _)| row)
            .collect()
    };
    match column.data_type() {
        DataType::Float64 => bad(column),
        DataType::LargeList(item) if *item.data_type() == DataType::Float64 => {
            let lists = column.as_list::<i64>();
            (0..lists.len())
                .filter(|row| lists.is_valid(*row) && !bad(&lists.value(*row)).is_empty())
                .collect()
        }
        _ => Vec::new(),
    }
}
