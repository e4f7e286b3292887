//! One chunk from its rows to its committed parts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use arrow::array::{Array as _, AsArray as _, UInt64Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use engine_core::{Digest, MapOutput, OperatorError, PartRef, PortType, RowsDigest};
use engine_store::{Chunk, FailedRowRecord, MapPartManifest, MapPartRef, RowsHasher, StoreError};
use schemas::record::PartSpan;

use super::compute::{Computer, Job};
use super::driver::Driver;
use super::gather::{ChunkDone, QuarantinedRow};
use super::lookup::material;
use crate::clock;

/// Columns whose values name a row for people.
const ROW_KEY_COLUMNS: [&str; 2] = ["prompt_id", "sample"];

/// Some rows of a chunk: all, or those that failed before.
struct Piece<'a> {
    rows: &'a RecordBatch,
    digest: RowsDigest,
    /// Number of every row among all rows of the input.
    numbers: &'a dyn Fn(usize) -> u64,
}

/// A part and whether it was computed just now.
struct Slice {
    manifest: MapPartManifest,
    is_fresh: bool,
}

impl Driver<'_> {
    /// Brings all slices of a chunk about and hands in their names.
    pub(super) fn do_chunk(
        &self,
        index: usize,
        chunk: &Chunk,
        lane: u32,
        computer: &Computer,
    ) -> Result<(), OperatorError> {
        let mut done = ChunkDone::new(index, chunk.rows.num_rows() as u64, self.ports());
        let numbers = |row: usize| chunk.first_row + row as u64;
        let piece = Piece {
            rows: &chunk.rows,
            digest: chunk.digest.clone(),
            numbers: &numbers,
        };
        let slices = self.do_piece(&piece, &self.slices, lane, computer, &mut done)?;
        for (slice, range) in slices.into_iter().zip(&self.slices) {
            done.add(&slice.manifest, &piece.digest);
            let failed = slice.manifest.failed;
            let left = if slice.is_fresh || failed.is_empty() {
                failed
            } else {
                self.try_again(chunk, range, failed, lane, computer, &mut done)?
            };
            done.failed
                .extend(left.into_iter().map(|failed| QuarantinedRow {
                    row: chunk.first_row + failed.row,
                    row_key: failed.row_key,
                    error: failed.error,
                }));
        }
        self.hand_in(done);
        Ok(())
    }

    /// Computes rows of a chunk that failed in an earlier run, as a part of their own; returns those that fail again.
    fn try_again(
        &self,
        chunk: &Chunk,
        slice: &Range<u32>,
        mut open: Vec<FailedRowRecord>,
        lane: u32,
        computer: &Computer,
        done: &mut ChunkDone,
    ) -> Result<Vec<FailedRowRecord>, OperatorError> {
        while !open.is_empty() {
            let indices: UInt64Array = open.iter().map(|failed| Some(failed.row)).collect();
            let rows = take_record_batch(&chunk.rows, &indices)?;
            let mut hasher = RowsHasher::default();
            hasher.update(&rows)?;
            let numbers = |row: usize| chunk.first_row + indices.value(row);
            let piece = Piece {
                rows: &rows,
                digest: hasher.digest(),
                numbers: &numbers,
            };
            let slices =
                self.do_piece(&piece, std::slice::from_ref(slice), lane, computer, done)?;
            let Some(Slice { manifest, is_fresh }) = slices.into_iter().next() else {
                break;
            };
            done.add(&manifest, &piece.digest);
            let before = open.len();
            open = manifest
                .failed
                .into_iter()
                .map(|failed| FailedRowRecord {
                    row: indices.value(failed.row as usize),
                    ..failed
                })
                .collect();
            // Each round that was committed leaves fewer rows.
            if is_fresh || open.len() >= before {
                break;
            }
        }
        Ok(open)
    }

    /// The slices of some rows: those that are there, and the others computed and committed.
    fn do_piece(
        &self,
        piece: &Piece<'_>,
        slices: &[Range<u32>],
        lane: u32,
        computer: &Computer,
        done: &mut ChunkDone,
    ) -> Result<Vec<Slice>, OperatorError> {
        let keys = self.keys.keys(piece.rows, &piece.digest, slices)?;
        let found = self.look_up(&piece.digest, &keys, slices)?;
        let missing: Vec<usize> = (0..slices.len())
            .filter(|slice| found[*slice].is_none())
            .collect();
        let mut made = BTreeMap::new();
        if !missing.is_empty() {
            let wanted: Vec<(&Digest, &Range<u32>)> = missing
                .iter()
                .map(|slice| (&keys[*slice], &slices[*slice]))
                .collect();
            let (parts, span) = self.compute(piece, &wanted, lane, computer)?;
            done.spans.push(span);
            done.tokens += parts.iter().map(|part| part.tokens).sum::<u64>();
            made.extend(missing.iter().copied().zip(parts));
        }
        done.reused += (slices.len() - missing.len()) as u64;
        done.computed += missing.len() as u64;
        let all = found.into_iter().enumerate().map(|(slice, found)| {
            let is_fresh = found.is_none();
            let manifest = found.or_else(|| made.remove(&slice));
            let manifest = manifest.expect("a slice was found or made");
            Slice { manifest, is_fresh }
        });
        Ok(all.collect())
    }

    fn compute(
        &self,
        piece: &Piece<'_>,
        wanted: &[(&Digest, &Range<u32>)],
        lane: u32,
        computer: &Computer,
    ) -> Result<(Vec<MapPartManifest>, PartSpan), OperatorError> {
        let rows = piece.rows.num_rows() as u64;
        let key = wanted[0].0.short();
        let span = tracing::info_span!("part", part = key, rows, slices = wanted.len());
        let _entered = span.enter();
        let begun = Instant::now();
        let first_row = if rows == 0 { 0 } else { (piece.numbers)(0) };
        let job = Job {
            rows: piece.rows.clone(),
            first_row,
            slices: wanted.iter().map(|(_, slice)| (*slice).clone()).collect(),
        };
        let output = self.apply(job, computer)?;
        check(&output, piece.rows.num_rows(), wanted.len())?;
        let units: u64 = wanted.iter().map(|(_, slice)| slice.len() as u64).sum();
        let failed = failed_rows(piece.rows, &output)?;
        let mut parts = Vec::with_capacity(wanted.len());
        for ((key, slice), tables) in wanted.iter().zip(output.slices) {
            let manifest = MapPartManifest {
                key: (*key).clone(),
                material: material(&piece.digest, slice),
                rows,
                outputs: self.write(tables)?,
                failed: failed.clone(),
                seconds: begun.elapsed().as_secs_f64() / wanted.len() as f64,
                tokens: output.tokens * slice.len() as u64 / units.max(1),
                created: clock::now(),
            };
            parts.push(self.commit(manifest)?);
        }
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(
            part = key,
            rows,
            failed = failed.len(),
            tokens = output.tokens,
            seconds,
            "part committed"
        );
        let span = PartSpan {
            part: key.to_owned(),
            rows,
            start: (begun - self.begun).as_secs_f64(),
            seconds,
            lane,
        };
        Ok((parts, span))
    }

    /// Stores the rows of each output port.
    fn write(
        &self,
        mut tables: BTreeMap<String, RecordBatch>,
    ) -> Result<BTreeMap<String, Vec<PartRef>>, OperatorError> {
        let mut outputs = BTreeMap::new();
        for (port, port_type) in self.ports() {
            let PortType::Table { table, schema } = port_type else {
                return Err(OperatorError::Internal(format!(
                    "output port `{port}` of a stage that works row by row holds a model"
                )));
            };
            let Some(rows) = tables.remove(port).filter(|rows| rows.num_rows() > 0) else {
                continue;
            };
            let part =
                self.store()
                    .write_part(*table, schema, &[rows])
                    .map_err(|error| match error {
                        // Rows of another shape than declared are a mistake in the operator, not in the user's data.
                        StoreError::Rows(message) => {
                            OperatorError::Internal(format!("output port `{port}`: {message}"))
                        }
                        other => other.into(),
                    })?;
            outputs.insert(port.clone(), vec![part]);
        }
        match tables.into_keys().next() {
            None => Ok(outputs),
            Some(port) => Err(OperatorError::Internal(format!(
                "there is no output port `{port}`"
            ))),
        }
    }

    /// Commits a part. One in which every row failed is not kept: nothing was gained, and they are to be tried again.
    fn commit(&self, manifest: MapPartManifest) -> Result<MapPartManifest, OperatorError> {
        if manifest.rows > 0 && manifest.failed.len() as u64 == manifest.rows {
            return Ok(manifest);
        }
        let commit = self.store().commit_map_part(&manifest)?;
        self.io.committed();
        Ok(if self.job.is_forced {
            manifest
        } else {
            commit.manifest
        })
    }
}

impl ChunkDone {
    /// Takes up a part.
    fn add(&mut self, part: &MapPartManifest, digest: &RowsDigest) {
        for (port, outputs) in &mut self.outputs {
            if let Some(parts) = part.outputs.get(port) {
                outputs.extend(parts.iter().cloned());
            }
        }
        let failed = part.failed.len() as u64;
        if failed < part.rows {
            self.parts.push(MapPartRef {
                key: part.key.clone(),
                rows_digest: digest.clone(),
                rows: part.rows,
                failed,
            });
        }
    }
}

fn check(output: &MapOutput, rows: usize, slices: usize) -> Result<(), OperatorError> {
    let wrong = |what: String| Err(OperatorError::Internal(format!("the operator {what}")));
    if output.slices.len() != slices {
        return wrong(format!(
            "gave {} slices of a part where {slices} were asked for",
            output.slices.len()
        ));
    }
    match output.failed.iter().find(|failed| failed.row >= rows) {
        Some(failed) => wrong(format!(
            "says that row {} failed of a part of {rows} rows",
            failed.row
        )),
        None => Ok(()),
    }
}

/// The failed rows in order, each once, with what names them.
fn failed_rows(
    rows: &RecordBatch,
    output: &MapOutput,
) -> Result<Vec<FailedRowRecord>, OperatorError> {
    let mut failed: Vec<FailedRowRecord> = Vec::with_capacity(output.failed.len());
    for row in &output.failed {
        failed.push(FailedRowRecord {
            row: row.row as u64,
            row_key: row_key(rows, row.row)?,
            error: row.error.clone(),
        });
    }
    failed.sort_by_key(|failed| failed.row);
    failed.dedup_by_key(|failed| failed.row);
    Ok(failed)
}

/// For example `prompt_id=a7 sample=3`.
fn row_key(rows: &RecordBatch, row: usize) -> Result<String, OperatorError> {
    let mut words = Vec::new();
    for name in ROW_KEY_COLUMNS {
        let Some(column) = rows.column_by_name(name) else {
            continue;
        };
        let text = cast(&column.slice(row, 1), &DataType::LargeUtf8)?;
        let text = text.as_string::<i64>();
        if text.is_valid(0) {
            words.push(format!("{name}={}", text.value(0)));
        }
    }
    Ok(words.join(" "))
}
