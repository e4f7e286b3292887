//! Two tables, row by row: rows of one side only, and rows with equal keys that differ.
//!
//! Rows are compared by hashes, so that tables of any column types and of many more bytes than memory can be compared;
//! memory grows with the number of rows of the first table, by some fifty bytes each.

use std::collections::HashMap;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use engine_core::Dataset;
use engine_query::rows_to_json;
use engine_store::{Store, row_hashes};
use schemas::TableName;
use serde::Serialize;
use serde_json::{Map, Value, json};

type Row = Map<String, Value>;

/// What differs between two tables.
#[derive(Debug, Serialize)]
pub(super) struct TableDiff {
    pub(super) port: String,
    pub(super) table: TableName,
    pub(super) equal: bool,
    pub(super) rows_a: u64,
    pub(super) rows_b: u64,
    /// Columns that name a row; empty when whole rows are compared.
    pub(super) key: Vec<String>,
    pub(super) only_a: u64,
    pub(super) only_b: u64,
    pub(super) changed: u64,
    /// Columns that one side lacks or has with another type; they are not compared.
    pub(super) columns: Vec<String>,
    pub(super) examples: Vec<RowDiff>,
}

/// A row that differs.
#[derive(Debug, Serialize)]
pub(super) struct RowDiff {
    pub(super) what: RowChange,
    pub(super) key: Row,
    /// Values in A and in B by column: of all columns, or of those that changed.
    pub(super) values: Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RowChange {
    OnlyA,
    OnlyB,
    Changed,
}

pub(super) fn compare(
    store: &Store,
    port: String,
    a: &Dataset,
    b: &Dataset,
    limit: usize,
) -> anyhow::Result<TableDiff> {
    let mut diff = TableDiff {
        port,
        table: b.table,
        equal: a.digest == b.digest,
        rows_a: a.rows,
        rows_b: b.rows,
        key: Vec::new(),
        only_a: 0,
        only_b: 0,
        changed: 0,
        columns: Vec::new(),
        examples: Vec::new(),
    };
    if diff.equal {
        return Ok(diff);
    }
    let (schema_a, schema_b) = (store.schema(a)?, store.schema(b)?);
    let common = common_columns(&schema_a, &schema_b, &mut diff.columns);
    diff.key = key_columns(b.table, &common);
    let places = Places::find(store, (a, b), &common, &diff.key, limit)?;
    (diff.only_a, diff.only_b, diff.changed) = (places.only_a, places.only_b, places.changed);
    let rows_a = rows_at(store, a, places.pairs.iter().filter_map(|pair| pair.0))?;
    let rows_b = rows_at(store, b, places.pairs.iter().filter_map(|pair| pair.1))?;
    diff.examples = places
        .pairs
        .iter()
        .map(|(a, b)| {
            let row = |rows: &HashMap<u64, Row>, place: &Option<u64>| {
                place.and_then(|place| rows.get(&place).cloned())
            };
            row_diff(&diff.key, &common, row(&rows_a, a), row(&rows_b, b))
        })
        .collect();
    Ok(diff)
}

/// Names of columns that both have with one type; what else there is goes to `others`.
fn common_columns(a: &SchemaRef, b: &SchemaRef, others: &mut Vec<String>) -> Vec<String> {
    let mut common = Vec::new();
    for field in b.fields() {
        match a.field_with_name(field.name()) {
            Ok(other) if other.data_type().equals_datatype(field.data_type()) => {
                common.push(field.name().clone());
            }
            Ok(other) => others.push(format!(
                "{}: {} in A, {} in B",
                field.name(),
                other.data_type(),
                field.data_type()
            )),
            Err(_) => others.push(format!("{}: only in B", field.name())),
        }
    }
    let only_a = a
        .fields()
        .iter()
        .filter(|field| b.field_with_name(field.name()).is_err());
    others.extend(only_a.map(|field| format!("{}: only in A", field.name())));
    common
}

/// Columns that name a row of a table, as far as both sides have them.
fn key_columns(table: TableName, common: &[String]) -> Vec<String> {
    let names: &[&str] = match table {
        TableName::Prompts => &["prompt_id"],
        TableName::PassRates => &["step", "prompt_id"],
        TableName::Rollouts | TableName::Verdicts | TableName::Scores => {
            &["step", "prompt_id", "sample"]
        }
        TableName::Examples => &["prompt_id", "origin"],
        TableName::Metrics => &["step", "name"],
        TableName::Evaluations => &["category"],
        TableName::Quarantine => &["row_key"],
        TableName::Rows if common.iter().any(|name| name == "prompt_id") => {
            &["step", "prompt_id", "sample"]
        }
        TableName::Rows => &["id"],
    };
    let is_there = |name: &&&str| common.iter().any(|column| column == **name);
    names
        .iter()
        .filter(is_there)
        .map(|name| (*name).to_owned())
        .collect()
}

/// Where rows differ.
#[derive(Default)]
struct Places {
    only_a: u64,
    only_b: u64,
    changed: u64,
    /// Numbers of the rows in A and in B, of as many as are shown.
    pairs: Vec<(Option<u64>, Option<u64>)>,
}

/// Rows of A by key: hash of the row and its number.
type Known = HashMap<u128, (u128, u64)>;

impl Places {
    fn find(
        store: &Store,
        (a, b): (&Dataset, &Dataset),
        common: &[String],
        key: &[String],
        limit: usize,
    ) -> anyhow::Result<Self> {
        let mut known: Known = HashMap::new();
        for_each_row(store, a, common, key, |key, row, number| {
            known.insert(key, (row, number));
        })?;
        let mut places = Self::default();
        let (mut changed, mut only_b) = (Vec::new(), Vec::new());
        for_each_row(store, b, common, key, |key, row, number| {
            match known.remove(&key) {
                Some((other, _)) if other == row => {}
                Some((_, place)) => {
                    places.changed += 1;
                    keep(&mut changed, (Some(place), Some(number)), limit);
                }
                None => {
                    places.only_b += 1;
                    keep(&mut only_b, (None, Some(number)), limit);
                }
            }
        })?;
        places.only_a = known.len() as u64;
        let mut left: Vec<u64> = known.into_values().map(|(_, number)| number).collect();
        left.sort_unstable();
        let only_a = left.into_iter().map(|number| (Some(number), None));
        places.pairs = changed.into_iter().chain(only_a).chain(only_b).collect();
        places.pairs.truncate(limit);
        Ok(places)
    }
}

fn keep<T>(list: &mut Vec<T>, value: T, limit: usize) {
    if list.len() < limit {
        list.push(value);
    }
}

/// Calls back with the hash of the key, the hash of the row and the number of each row. Rows with equal keys are told
/// apart by their order.
fn for_each_row(
    store: &Store,
    dataset: &Dataset,
    common: &[String],
    key: &[String],
    mut each: impl FnMut(u128, u128, u64),
) -> anyhow::Result<()> {
    let key = if key.is_empty() { common } else { key };
    let mut seen: HashMap<u128, u32> = HashMap::new();
    let mut number = 0;
    for batch in store.read(dataset) {
        let batch = batch?;
        let keys = hashes(&batch, key)?;
        let rows = hashes(&batch, common)?;
        for (key, row) in keys.into_iter().zip(rows) {
            let times = seen.entry(key).or_default();
            let place = key.wrapping_add(u128::from(*times).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            *times += 1;
            each(place, row, number);
            number += 1;
        }
    }
    Ok(())
}

/// Hashes of the rows over some columns. Both tables have them in one order.
fn hashes(batch: &RecordBatch, columns: &[String]) -> anyhow::Result<Vec<u128>> {
    let schema = batch.schema_ref();
    let places = columns.iter().map(|name| schema.index_of(name));
    let places = places.collect::<Result<Vec<_>, _>>()?;
    Ok(row_hashes(&batch.project(&places)?)?)
}

/// Rows by their numbers. Parts without any of them are not opened.
fn rows_at(
    store: &Store,
    dataset: &Dataset,
    numbers: impl Iterator<Item = u64>,
) -> anyhow::Result<HashMap<u64, Row>> {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    let mut found = HashMap::new();
    let mut start = 0;
    for part in &dataset.parts {
        let end = start + part.rows;
        let mut wanted = numbers
            .iter()
            .copied()
            .filter(|number| (start..end).contains(number))
            .peekable();
        if wanted.peek().is_some() {
            let one = Dataset {
                parts: vec![part.clone()],
                ..dataset.clone()
            };
            let mut first = start;
            for batch in store.read(&one) {
                let batch = batch?;
                let next = first + batch.num_rows() as u64;
                while let Some(number) = wanted.next_if(|number| *number < next) {
                    // A row of a batch in memory, far below the size of an index.
                    let row = batch.slice((number - first) as usize, 1);
                    found.extend(
                        rows_to_json(&[row])?
                            .into_iter()
                            .next()
                            .map(|row| (number, row)),
                    );
                }
                first = next;
            }
        }
        start = end;
    }
    Ok(found)
}

fn row_diff(key: &[String], common: &[String], a: Option<Row>, b: Option<Row>) -> RowDiff {
    let what = match (&a, &b) {
        (Some(_), None) => RowChange::OnlyA,
        (None, _) => RowChange::OnlyB,
        _ => RowChange::Changed,
    };
    let some = b.as_ref().or(a.as_ref());
    let key_values = key
        .iter()
        .filter_map(|name| Some((name.clone(), some?.get(name)?.clone())))
        .collect();
    let values = common
        .iter()
        .filter(|name| !key.contains(name))
        .filter_map(|name| {
            let before = a.as_ref().and_then(|row| row.get(name));
            let now = b.as_ref().and_then(|row| row.get(name));
            (before != now).then(|| (name.clone(), json!({ "a": before, "b": now })))
        })
        .collect();
    RowDiff {
        what,
        key: key_values,
        values,
    }
}
