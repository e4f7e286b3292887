//! How much of the time of writing a dataset goes into its digest, on one core.
//!
//! ```text
//! cargo bench --bench digest -- [--rows N] [--repeat N] [--json]
//! ```
//!
//! Three things are timed on the same batches: hashing the rows, encoding them as Parquet with zstd, and writing them with the
//! engine's writer, which does both, names each part by blake3 and puts it into a store in memory. The share is that of
//! hashing in all of the writer's time. The best of `--repeat` rounds counts, in seconds of the one thread's processor time where
//! the system tells it, so that what else the machine does counts little.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its figures and stops at the first fault"
)]

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BooleanArray, LargeListBuilder, LargeStringArray, RecordBatch, UInt32Array,
    UInt32Builder, UInt64Array,
};
use arrow::array::{Float32Builder, LargeListArray};
use arrow::datatypes::{DataType, Field};
use engine_store::{DatasetWriter, PartLimits, RowsHasher, Store};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use schemas::TableName;
use serde_json::json;

/// Rows of a batch, as operators hand them over.
const BATCH_ROWS: usize = 4096;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let rows: usize =
        option("--rows").map_or(40_960, |text| text.parse().expect("--rows takes a number"));
    let repeat: usize =
        option("--repeat").map_or(11, |text| text.parse().expect("--repeat takes a number"));
    let is_json = arguments.iter().any(|argument| argument == "--json");
    let mut numbers = Numbers(17);
    let tables = [
        (TableName::Rollouts, rows, rollouts as Maker),
        (TableName::Verdicts, rows * 16, verdicts as Maker),
    ];
    for (table, rows, make) in tables {
        let batches: Vec<RecordBatch> = (0..rows)
            .step_by(BATCH_ROWS)
            .map(|start| make(start, BATCH_ROWS.min(rows - start), &mut numbers))
            .collect();
        report(table, &batches, repeat, is_json);
    }
}

type Maker = fn(usize, usize, &mut Numbers) -> RecordBatch;

fn report(table: TableName, batches: &[RecordBatch], repeat: usize, is_json: bool) {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let bytes: usize = batches
        .iter()
        .flat_map(RecordBatch::columns)
        .map(|column| column.to_data().get_slice_memory_size().unwrap())
        .sum();
    let (mut hash, mut encode, mut write) = (vec![], vec![], vec![]);
    for _ in 0..repeat {
        hash.push(timed(|| hashed(batches)));
        encode.push(timed(|| encoded(batches)));
        write.push(timed(|| written(table, batches)));
    }
    let (hash, encode, write) = (best(hash), best(encode), best(write));
    let share = 100.0 * hash / write;
    let per_second = |seconds: f64| (rows as f64 / seconds, bytes as f64 / seconds);
    if is_json {
        let figures = |seconds| {
            let (rows, bytes) = per_second(seconds);
            json!({"seconds": seconds, "rows_per_s": rows, "bytes_per_s": bytes})
        };
        let line = json!({
            "bench": "digest", "table": table.as_str(), "rows": rows, "bytes": bytes,
            "hash": figures(hash), "encode": figures(encode), "write": figures(write),
            "hash_share_percent": share,
        });
        println!("{line}");
        return;
    }
    println!(
        "{table}: {rows} rows, {:.0} bytes each",
        bytes as f64 / rows as f64
    );
    for (what, seconds) in [("hash", hash), ("encode", encode), ("write", write)] {
        let (rows, bytes) = per_second(seconds);
        println!(
            "  {what:<7} {:>9.3} M rows/s {:>9.1} MB/s",
            rows / 1e6,
            bytes / 1e6
        );
    }
    println!("  hashing takes {share:.1} % of the time of writing");
}

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let (start, processor) = (Instant::now(), processor_seconds());
    std::hint::black_box(work());
    match (processor, processor_seconds()) {
        (Some(before), Some(after)) => after - before,
        _ => start.elapsed().as_secs_f64(),
    }
}

/// Time that this thread had a processor.
fn processor_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

fn best(seconds: Vec<f64>) -> f64 {
    seconds.into_iter().fold(f64::INFINITY, f64::min)
}

fn hashed(batches: &[RecordBatch]) -> String {
    let mut hasher = RowsHasher::try_new(&batches[0].schema()).unwrap();
    for batch in batches {
        hasher.update(batch).unwrap();
    }
    hasher.digest().0
}

fn encoded(batches: &[RecordBatch]) -> usize {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(PartLimits::default().row_group_rows))
        .build();
    let mut writer =
        ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties)).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.into_inner().unwrap().len()
}

fn written(table: TableName, batches: &[RecordBatch]) -> u64 {
    let store = Store::open("memory://").unwrap();
    let limits = PartLimits::default();
    let mut writer = DatasetWriter::try_new(&store, table, batches[0].schema(), limits).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.finish().unwrap().rows
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }

    /// Words of a reasoning text, the first ones more often.
    fn text(&mut self, bytes: usize) -> String {
        const WORDS: [&str; 24] = [
            "the",
            "of",
            "we",
            "is",
            "so",
            "x",
            "and",
            "that",
            "then",
            "equals",
            "angle",
            "side",
            "triangle",
            "therefore",
            "square",
            "12",
            "number",
            "because",
            "area",
            "answer",
            "3.5",
            "substitute",
            "perpendicular",
            "\\boxed{7}",
        ];
        let mut text = String::with_capacity(bytes + 16);
        while text.len() < bytes {
            let place = self.below(WORDS.len());
            text.push_str(WORDS[self.below(place + 1)]);
            text.push(' ');
        }
        text
    }
}

fn texts(rows: usize, mut text: impl FnMut(usize) -> String) -> ArrayRef {
    Arc::new(
        (0..rows)
            .map(|row| Some(text(row)))
            .collect::<LargeStringArray>(),
    )
}

/// Text of 200 to 1000 bytes with its tokens and log-probabilities.
fn rollouts(first: usize, rows: usize, numbers: &mut Numbers) -> RecordBatch {
    let completions: Vec<String> = (0..rows)
        .map(|_| {
            let bytes = 200 + numbers.below(800);
            numbers.text(bytes)
        })
        .collect();
    let item = |data_type| Field::new("item", data_type, false);
    let mut tokens = LargeListBuilder::new(UInt32Builder::new()).with_field(item(DataType::UInt32));
    let mut logprobs =
        LargeListBuilder::new(Float32Builder::new()).with_field(item(DataType::Float32));
    for completion in &completions {
        for _ in 0..completion.len() / 4 {
            let rank = numbers.below(50_000);
            tokens.values().append_value(numbers.below(rank + 1) as u32);
            let place = numbers.below(1 << 20) as f32 / (1 << 20) as f32;
            logprobs.values().append_value((1.0 - place).ln() / 4.0);
        }
        tokens.append(true);
        logprobs.append(true);
    }
    let (tokens, logprobs): (LargeListArray, LargeListArray) = (tokens.finish(), logprobs.finish());
    let row = |index: usize| first + index;
    let columns: Vec<ArrayRef> = vec![
        texts(rows, |index| format!("geometry-{:06}", row(index) / 8)),
        Arc::new(
            (0..rows)
                .map(|index| Some(row(index) as u32 % 8))
                .collect::<UInt32Array>(),
        ),
        texts(rows, |index| completions[index].clone()),
        Arc::new(tokens),
        Arc::new(logprobs),
        texts(rows, |_| "stop".to_owned()),
        Arc::new((0..rows).map(|_| Some(180)).collect::<UInt32Array>()),
        texts(rows, |_| "5f".repeat(32)),
        Arc::new((0..rows).map(|_| Some(17)).collect::<UInt64Array>()),
    ];
    RecordBatch::try_new(TableName::Rollouts.schema(), columns).unwrap()
}

/// Six short columns.
fn verdicts(first: usize, rows: usize, numbers: &mut Numbers) -> RecordBatch {
    let row = |index: usize| first + index;
    let extracted: LargeStringArray = (0..rows)
        .map(|_| (numbers.below(10) != 0).then(|| numbers.below(1000).to_string()))
        .collect();
    let columns: Vec<ArrayRef> = vec![
        texts(rows, |index| format!("geometry-{:06}", row(index) / 8)),
        Arc::new(
            (0..rows)
                .map(|index| Some(row(index) as u32 % 8))
                .collect::<UInt32Array>(),
        ),
        texts(rows, |_| {
            ["correct", "wrong", "wrong"][numbers.below(3)].to_owned()
        }),
        Arc::new(extracted),
        Arc::new(
            (0..rows)
                .map(|index| Some(index % 7 != 0))
                .collect::<BooleanArray>(),
        ),
        texts(rows, |_| "math/3".to_owned()),
    ];
    RecordBatch::try_new(TableName::Verdicts.schema(), columns).unwrap()
}
