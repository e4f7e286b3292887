//! TensorBoard event files, byte by byte: records with their checksums around three small protocol buffer messages.

use std::io::{self, Write};

/// What the first record of a file says.
const VERSION: &str = "brain.Event:2";

/// Fields of `Event`, `Summary`, `Summary.Value` and `SessionLog` as their definitions number them.
const WALL_TIME: u32 = 1;
const STEP: u32 = 2;
const FILE_VERSION: u32 = 3;
const SUMMARY: u32 = 5;
const SESSION_LOG: u32 = 7;
const VALUE: u32 = 1;
const TAG: u32 = 1;
const SIMPLE_VALUE: u32 = 2;
const STATUS: u32 = 1;

/// The status of a session that begins: what readers know of this step and later ones no longer counts.
const START: u64 = 1;

/// The records at the beginning of a file whose first step is `step`.
pub(super) fn write_start(out: &mut impl Write, wall_time: f64, step: u64) -> io::Result<()> {
    let mut version = event(wall_time, 0);
    bytes(&mut version, FILE_VERSION, VERSION.as_bytes());
    write_record(out, &version)?;
    let mut session = Vec::new();
    integer(&mut session, STATUS, START);
    let mut start = event(wall_time, step);
    bytes(&mut start, SESSION_LOG, &session);
    write_record(out, &start)
}

/// The record of the numbers of a step.
pub(super) fn write_scalars(
    out: &mut impl Write,
    wall_time: f64,
    step: u64,
    values: &[(String, f64)],
) -> io::Result<()> {
    let mut summary = Vec::new();
    for (name, number) in values {
        let mut value = Vec::new();
        bytes(&mut value, TAG, name.as_bytes());
        tag(&mut value, SIMPLE_VALUE, 5);
        value.extend_from_slice(&(*number as f32).to_le_bytes());
        bytes(&mut summary, VALUE, &value);
    }
    let mut event = event(wall_time, step);
    bytes(&mut event, SUMMARY, &summary);
    write_record(out, &event)
}

fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    tag(&mut event, WALL_TIME, 1);
    event.extend_from_slice(&wall_time.to_le_bytes());
    if step > 0 {
        integer(&mut event, STEP, step);
    }
    event
}

/// Length, its checksum, the bytes, their checksum. In one write, so that a reader of the growing file sees whole records.
fn write_record(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked(checksum(&length)).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked(checksum(data)).to_le_bytes());
    out.write_all(&record)
}

fn bytes(out: &mut Vec<u8>, field: u32, content: &[u8]) {
    tag(out, field, 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn integer(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, 0);
    varint(out, value);
}

/// The number of a field and how its value is written: 0 varint, 1 eight bytes, 2 with its length, 5 four bytes.
fn tag(out: &mut Vec<u8>, field: u32, wire: u32) {
    varint(out, u64::from(field << 3 | wire));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Checksums of data that hold checksums themselves are masked in this format.
fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli).
fn checksum(data: &[u8]) -> u32 {
    let step =
        |checksum: u32, byte: &u8| (checksum >> 8) ^ TABLE[usize::from(checksum as u8 ^ byte)];
    !data.iter().fold(!0, step)
}

static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    // The polynomial 0x1edc6f41 with its bits the other way round.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut entry = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            entry = if entry & 1 == 1 {
                entry >> 1 ^ POLYNOMIAL
            } else {
                entry >> 1
            };
            bit += 1;
        }
        table[byte] = entry;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the algorithm (RFC 3720, appendix B.4, has others).
    #[test]
    fn the_checksum_is_that_of_castagnoli() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
    }
}
