//! The functions of the query: what a rollout measures, and what SQL parts say of rows of several tables.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, LargeListArray, RecordBatch,
    RecordBatchOptions, StructArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, UInt32Type};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use engine_query::Expressions;
use rayon::prelude::*;

use super::sources::{Sources, TOKENS};

/// Name of the function that measures.
pub(super) const MEASURE: &str = "score_measure";
/// Name of the function that computes SQL parts over several tables.
pub(super) const JOINED: &str = "score_joined";

/// Rows that one thread measures at least.
const ROWS_AT_ONCE: usize = 256;

/// What a completion that was cut off has as its `finish_reason`.
const CUT_OFF: &str = "length";

/// Columns of what is measured, in front of those of SQL parts.
pub(super) const MEASURES: [&str; 4] = [TOKENS, "truncated", "repetition", "language"];

/// `score_measure(sample, columns of rollouts...)`: what counts of a text and its tokens, and the SQL parts over rollouts alone.
pub(super) fn measure_function(sources: &Arc<Sources>) -> ScalarUDF {
    let of_rollouts = sources.measured_columns.iter();
    let types = of_rollouts.map(|column| column.data_type().clone());
    let types = [DataType::UInt32].into_iter().chain(types).collect();
    let result = DataType::Struct(measured_fields(sources));
    let sources = Arc::clone(sources);
    let function = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let measured = measure(&sources, arrays[0].len(), &arrays[1..])?;
        Ok(ColumnarValue::Array(Arc::new(measured)))
    };
    let function = Arc::new(function);
    create_udf(MEASURE, types, result, Volatility::Immutable, function)
}

fn measured_fields(sources: &Sources) -> Fields {
    let [tokens, truncated, repetition, language] = MEASURES;
    let fields = [
        Field::new(tokens, DataType::Int64, true),
        Field::new(truncated, DataType::Boolean, false),
        Field::new(repetition, DataType::Float64, false),
        Field::new(language, DataType::Float64, false),
    ];
    let sql = sql_fields(&sources.measured.places);
    fields
        .into_iter()
        .map(Arc::new)
        .chain(sql.iter().cloned())
        .collect()
}

/// A column for each SQL part, named after its place among all of them.
fn sql_fields(places: &[usize]) -> Fields {
    let names = places.iter().map(|place| format!("s{place}"));
    names
        .map(|name| Field::new(name, DataType::Float64, true))
        .collect()
}

/// What counts of rollouts. `arrays` are the columns that are measured.
pub(super) fn measure(sources: &Sources, rows: usize, arrays: &[ArrayRef]) -> Result<StructArray> {
    let named = || sources.measured_columns.iter().zip(arrays);
    let column = |name: &str| {
        let mut columns = named();
        columns.find(|(column, _)| column.name() == name)
    };
    let texts = column("text").map(|(_, array)| array.as_string::<i64>());
    let lists = column("token_ids").map(|(_, array)| array.as_list::<i64>());
    let reasons = column("finish_reason").map(|(_, array)| array.as_string::<i64>());
    let measured: Vec<(Option<i64>, f64, f64)> = (0..rows)
        .into_par_iter()
        .with_min_len(ROWS_AT_ONCE)
        .map(|row| {
            let text = texts.map_or("", |texts| texts.value(row));
            let token_ids = lists.and_then(|lists| token_ids(lists, row));
            let measured = sources.config.measure(text, token_ids.unwrap_or(&[]));
            let tokens = token_ids.map(|token_ids| token_ids.len() as i64);
            (tokens, measured.repetition, measured.language)
        })
        .collect();
    let truncated: BooleanArray = (0..rows)
        .map(|row| Some(reasons.is_some_and(|reasons| reasons.value(row) == CUT_OFF)))
        .collect();
    let column = |part: fn(&(Option<i64>, f64, f64)) -> f64| -> ArrayRef {
        let values = measured.iter().map(part);
        Arc::new(Float64Array::from_iter_values(values))
    };
    let tokens: Int64Array = measured.iter().map(|measured| measured.0).collect();
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(tokens),
        Arc::new(truncated),
        column(|measured| measured.1),
        column(|measured| measured.2),
    ];
    let of_table = named().map(|(column, array)| (column.name().as_str(), array));
    let of_table = of_table.filter(|(name, _)| *name != TOKENS);
    let all = of_table.chain([(TOKENS, &columns[0])]);
    let values = evaluate(&sources.measured.expressions, all, rows)?;
    columns.extend(values);
    Ok(StructArray::try_new(
        measured_fields(sources),
        columns,
        None,
    )?)
}

/// The tokens of a rollout; None where nobody told them.
fn token_ids(lists: &LargeListArray, row: usize) -> Option<&[u32]> {
    if lists.is_null(row) {
        return None;
    }
    let offsets = lists.value_offsets();
    let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
    let values = lists.values().as_primitive::<UInt32Type>().values();
    Some(&values[start..end])
}

fn evaluate<'a>(
    expressions: &Expressions,
    columns: impl Iterator<Item = (&'a str, &'a ArrayRef)>,
    rows: usize,
) -> Result<Vec<ArrayRef>> {
    let (fields, arrays): (Vec<FieldRef>, Vec<ArrayRef>) = columns
        .map(|(name, array)| {
            let field = Field::new(name, array.data_type().clone(), true);
            (Arc::new(field), Arc::clone(array))
        })
        .unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?;
    let values = expressions
        .evaluate(&batch)
        .map_err(|error| DataFusionError::Execution(error.to_string()))?;
    let columns = values.into_columns().into_iter();
    Ok(columns.map(|values| Arc::new(values) as ArrayRef).collect())
}

/// `score_joined(sample, [measured], columns...)`: the SQL parts over rows of several tables.
pub(super) fn joined_function(sources: &Arc<Sources>) -> ScalarUDF {
    let mut types = vec![DataType::UInt32];
    if sources.reads_rollouts() {
        types.push(DataType::Struct(measured_fields(sources)));
    }
    let columns = sources.joined_here();
    types.extend(columns.map(|column| column.data_type().clone()));
    let result = DataType::Struct(sql_fields(&sources.joined.places));
    let sources = Arc::clone(sources);
    let function = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let rows = arrays[0].len();
        let values = if sources.reads_rollouts() {
            joined(&sources, rows, Some(arrays[1].as_struct()), &arrays[2..])
        } else {
            joined(&sources, rows, None, &arrays[1..])
        };
        Ok(ColumnarValue::Array(Arc::new(values?)))
    };
    let function = Arc::new(function);
    create_udf(JOINED, types, result, Volatility::Immutable, function)
}

/// SQL parts over rows of several tables. `arrays` are the columns of [`Sources::joined_here`].
pub(super) fn joined(
    sources: &Sources,
    rows: usize,
    measured: Option<&StructArray>,
    arrays: &[ArrayRef],
) -> Result<StructArray> {
    let tokens = measured.map(|measured| (TOKENS, measured.column(0)));
    // A column of the verdicts that is called as the number of tokens comes first.
    let tokens = tokens.filter(|_| sources.joined_here().all(|column| column.name() != TOKENS));
    let columns = sources.joined_here().zip(arrays);
    let columns = columns.map(|(column, array)| (column.name().as_str(), array));
    let values = evaluate(&sources.joined.expressions, columns.chain(tokens), rows)?;
    let fields = sql_fields(&sources.joined.places);
    Ok(StructArray::try_new(fields, values, None)?)
}
