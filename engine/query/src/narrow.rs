//! Some columns of an input port in the order of its rows, without a query: for operators that make one pass over a table.

use std::sync::mpsc;

use arrow::record_batch::RecordBatch;
use engine_core::{OperatorError, StageIo};
use engine_store::NarrowRows;

use crate::error::QueryError;

/// Batches that may wait between the reader and whoever takes its rows.
const BATCHES_IN_FLIGHT: usize = 4;

/// Rows of a port as they come, read by a thread of its own that ends when they are dropped.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, OperatorError>>>;

/// All rows of a port with these columns in this order; texts may come as dictionaries with keys of 32 bits. None where parts are not
/// on the local disk: then a query reads them.
///
/// # Errors
/// When the port is no table or the system gives no thread.
pub fn narrow_rows(
    io: &dyn StageIo,
    port: &str,
    columns: &'static [&'static str],
) -> Result<Option<Batches>, OperatorError> {
    rows_of(io.part_urls(port)?, columns)
}

fn rows_of(
    urls: Vec<String>,
    columns: &'static [&'static str],
) -> Result<Option<Batches>, OperatorError> {
    if !urls.iter().all(|url| url.starts_with("file://")) {
        return Ok(None);
    }
    let (sender, receiver) = mpsc::sync_channel(BATCHES_IN_FLIGHT);
    let read = move || {
        for url in urls {
            let batches = match NarrowRows::open(&url, columns) {
                Ok(Some(batches)) => batches,
                Ok(None) => {
                    let message = format!("`{url}` lacks a column of {columns:?}");
                    let _ = sender.send(Err(QueryError::Run(message).into()));
                    return;
                }
                Err(error) => {
                    let _ = sender.send(Err(error.into()));
                    return;
                }
            };
            for batch in batches {
                let batch = batch.map(Some).map_err(OperatorError::from);
                let has_failed = batch.is_err();
                // Nobody wants more rows, or there are none after an error.
                if sender.send(batch).is_err() || has_failed {
                    return;
                }
            }
        }
        // Said aloud: a reader that panics ends the channel too, and its rows so far are no result.
        let _ = sender.send(Ok(None));
    };
    std::thread::Builder::new()
        .name("read".to_owned())
        .spawn(read)
        .map_err(|error| QueryError::Run(format!("cannot start a thread that reads: {error}")))?;
    let mut has_ended = false;
    Ok(Some(Box::new(std::iter::from_fn(move || {
        if has_ended {
            return None;
        }
        let broken_down = || QueryError::Run("the reader of a table broke down".to_owned());
        let batch = receiver
            .recv()
            .unwrap_or_else(|_| Err(broken_down().into()));
        has_ended = !matches!(batch, Ok(Some(_)));
        batch.transpose()
    }))))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use parquet::arrow::ArrowWriter;

    use super::*;

    #[test]
    fn parts_come_in_their_order_and_a_missing_one_is_an_error_after_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut urls = Vec::new();
        for (name, first) in [("b", 0), ("a", 40_000)] {
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + 40_000));
            let batch =
                RecordBatch::try_from_iter([("other", Arc::clone(&numbers)), ("id", numbers)]);
            let batch = batch.unwrap();
            let path = folder.path().join(name);
            let file = File::create(&path).unwrap();
            let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
            urls.push(format!("file://{}", path.display()));
        }
        let ids = |batches: Batches| -> Vec<i64> {
            let batches = batches.map(|batch| {
                let batch = batch.unwrap();
                assert_eq!(batch.num_columns(), 1);
                batch
                    .column(0)
                    .as_primitive::<Int64Type>()
                    .values()
                    .to_vec()
            });
            batches.flatten().collect()
        };
        let found = ids(rows_of(urls.clone(), &["id"]).unwrap().unwrap());
        assert!(found.into_iter().eq(0..80_000));
        urls.push(format!("file://{}/gone", folder.path().display()));
        let mut some = rows_of(urls.clone(), &["id"]).unwrap().unwrap();
        assert!(matches!(some.next(), Some(Ok(_))));
        drop(some);
        let all = rows_of(urls.clone(), &["id"]).unwrap().unwrap();
        let all: Vec<_> = all.collect();
        let (last, before) = all.split_last().unwrap();
        assert!(last.is_err() && before.iter().all(Result::is_ok));
        let lacking = rows_of(urls, &["name"]).unwrap().unwrap();
        assert!(
            lacking
                .map(|batch| batch.unwrap_err().to_string())
                .all(|error| error.contains("lacks"))
        );
        let remote = vec!["s3://bucket/part.parquet".to_owned()];
        assert!(rows_of(remote, &["id"]).unwrap().is_none());
    }
}
