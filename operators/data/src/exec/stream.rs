//! Arrow streams: rows to a program's standard input, and rows from what it wrote.

use std::io::{BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::root_as_message;
use arrow::ipc::writer::StreamWriter;

/// Rows in one batch of the stream that a program reads.
const BATCH_ROWS: usize = 4096;
/// What each message of a stream begins with.
const MARK: [u8; 4] = [0xff; 4];
/// Bytes of what is no stream that an error shows.
const SHOWN: usize = 60;

/// What a program wrote.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) schema: SchemaRef,
    pub(super) batches: Vec<RecordBatch>,
}

/// Why a program's input was not written.
#[derive(Debug)]
pub(super) enum FeedError {
    /// It did not read all of it.
    Closed,
    /// Anything else; no fault of the program's.
    Other(String),
}

/// Writes rows as a stream and closes it.
pub(super) fn feed(rows: &RecordBatch, input: impl Write) -> Result<(), FeedError> {
    let failed = |error: ArrowError| match error {
        ArrowError::IoError(_, source) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            FeedError::Closed
        }
        error => FeedError::Other(error.to_string()),
    };
    let buffered = BufWriter::with_capacity(1 << 16, input);
    let mut writer = StreamWriter::try_new(buffered, rows.schema_ref()).map_err(failed)?;
    for start in (0..rows.num_rows()).step_by(BATCH_ROWS) {
        let length = BATCH_ROWS.min(rows.num_rows() - start);
        writer.write(&rows.slice(start, length)).map_err(failed)?;
    }
    writer.flush().map_err(failed)?;
    // A program may well know that there is nothing more without reading the end mark.
    match writer.finish().map_err(failed) {
        Err(FeedError::Closed) => Ok(()),
        result => result,
    }
}

/// Reads what a program wrote. An error goes on from "the program".
pub(super) fn read(bytes: Vec<u8>) -> Result<Written, String> {
    if bytes.is_empty() {
        return Err(
            "wrote nothing to its standard output, and an Arrow stream was expected".to_owned(),
        );
    }
    if !bytes.starts_with(&MARK) {
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
        return Err(format!(
            "wrote something to its standard output that is no Arrow stream; it begins with {start:?}. Print messages to standard \
             error"
        ));
    }
    check_frames(&bytes)?;
    let damaged = |what: &str| format!("wrote a damaged Arrow stream: {what}");
    // Lengths and offsets were checked; what else a hostile stream can hold makes the library panic, not read wrong memory.
    catch_unwind(AssertUnwindSafe(|| decode(bytes)))
        .map_err(|_| damaged("its messages contradict each other"))?
        .map_err(|error| damaged(&error.to_string()))
}

fn decode(bytes: Vec<u8>) -> Result<Written, ArrowError> {
    let mut buffer = Buffer::from_vec(bytes);
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !buffer.is_empty() {
        batches.extend(decoder.decode(&mut buffer)?);
    }
    decoder.finish()?;
    let schema = decoder
        .schema()
        .ok_or_else(|| ArrowError::IpcError("it has no schema".to_owned()))?;
    Ok(Written { schema, batches })
}

/// Walks over the messages and checks that every length stays inside of what was written, so that the decoder never waits
/// for, allocates or reads more than there is.
fn check_frames(bytes: &[u8]) -> Result<(), String> {
    let damaged = |what: &str| format!("wrote a damaged Arrow stream: {what}");
    let cut = || {
        "wrote an Arrow stream that breaks off; let it close the writer before it ends, which writes the end mark".to_owned()
    };
    let mut rest = bytes;
    loop {
        let (mark, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        if *mark != MARK {
            return Err(damaged(
                "something else stands between its messages; print messages to standard error",
            ));
        }
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 {
            return if after.is_empty() {
                Ok(())
            } else {
                let start = String::from_utf8_lossy(&after[..after.len().min(SHOWN)]);
                Err(format!(
                    "wrote more after the end of its Arrow stream: {start:?}. Print messages to standard error"
                ))
            };
        }
        let metadata = after.get(..length).ok_or_else(cut)?;
        let message = root_as_message(metadata).map_err(|error| damaged(&error.to_string()))?;
        let body_length = usize::try_from(message.bodyLength())
            .map_err(|_| damaged("a message has a negative length"))?;
        let body = after[length..].get(..body_length).ok_or_else(cut)?;
        let batch = message
            .header_as_record_batch()
            .or_else(|| message.header_as_dictionary_batch()?.data());
        let mut buffers = batch
            .and_then(|batch| batch.buffers())
            .into_iter()
            .flatten();
        let is_outside = |offset: i64, length: i64| {
            offset < 0 || length < 0 || offset.saturating_add(length) > body.len() as i64
        };
        if buffers.any(|buffer| is_outside(buffer.offset(), buffer.length())) {
            return Err(damaged("a buffer lies outside of its message"));
        }
        rest = &after[length + body_length..];
    }
}
