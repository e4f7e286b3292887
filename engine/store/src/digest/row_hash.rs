//! A hash of 128 bits for each row, computed column by column.
//!
//! A row's state is two words. They begin as the hash of the names and types of the columns. Each column's value then comes down
//! to two words, which are taken into the state in order:
//!
//! - a fixed-width value of at most eight bytes: its bits (floats too), twice;
//! - text, bytes and wider values of at most 15 bytes: the bytes, filled up with zeros, and their length in the last byte;
//!   longer ones: the halves of their XXH3 hash;
//! - a list: as bytes, those of its items when they are numbers, else the states of its items;
//! - a struct: the state of its fields, made in the same way;
//! - null: two constants, whatever lies under it.
//!
//! Taking in is a bijection of the state and of the two words, so that rows which differ in one value of fixed width, or in one
//! short text, never share a hash; and the order of columns counts. Where one value ends and the next begins
//! is never left open: each is taken in by itself.
//!
//! The hash of a row depends on that row alone: slices, offsets, validity masks of other rows and the width of text offsets
//! leave no trace.

use arrow::array::{Array, ArrayRef, AsArray as _, DictionaryArray, OffsetSizeTrait};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, ToByteSlice as _};
use arrow::record_batch::RecordBatch;
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::schema;
use crate::{Result, StoreError};

// Values are hashed as they lie in memory, and digests travel between machines.
const _: () = assert!(cfg!(target_endian = "little"));

/// The words of null.
const NULL: State = [0x6e75_6c6c_a5c3_1f07, 0x93b1_5e2d_77f0_4a19];
/// Tells the words of a fixed-width value from those of null.
const FIXED: u64 = 0x2d35_8dcc_aa6c_78a5;
/// Taken in after the last column, so that it is mixed as well as the others.
const END: State = [0x8bb8_4b93_962e_acc9, 0x4b33_a62e_d433_d4a3];
/// State of a struct before its fields, and of an item of a list.
const NESTED: State = [0x3c79_ac49_2ba7_b653, 0x1c69_b3f7_4ac4_ae35];
/// Seed of XXH3 for lists with null items, whose bytes are laid out in another way.
const WITH_NULLS: u64 = 1;

/// Texts of so many bytes stand for themselves.
const SHORT: usize = WORDS - 1;
/// Bytes of two words.
const WORDS: usize = 16;
/// Which bits of a short text are its own, by its length.
const OWN_BITS: [u128; SHORT + 1] = own_bits();
/// Rows whose states fit into the fastest cache.
const BLOCK_ROWS: usize = 1024;

type State = [u64; 2];

/// Where the states of rows with certain columns begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(State);

impl Seed {
    pub(super) fn try_new(schema: &Schema) -> Result<Self> {
        for field in schema.fields() {
            check(field.name(), field)?;
        }
        let described = schema::describe_logical(schema);
        Ok(Self(halves(xxh3_128(described.as_bytes()))))
    }
}

/// The hash of each row, over its values and the names and types of the columns. Text counts as text and a list as a list whatever
/// the width of offsets, dictionaries as their values, and nullability of columns does not count.
///
/// # Errors
/// When a column has a type that cannot be stored.
pub fn row_hashes(batch: &RecordBatch) -> Result<Vec<u128>> {
    let mut hashes = Vec::with_capacity(batch.num_rows());
    each_block(batch, Seed::try_new(batch.schema_ref())?, |states| {
        let words = states.iter();
        hashes.extend(words.map(|[low, high]| u128::from(*high) << 64 | u128::from(*low)));
    })?;
    Ok(hashes)
}

/// Computes the states of the rows, some at a time.
pub(super) fn each_block(
    batch: &RecordBatch,
    seed: Seed,
    mut take: impl FnMut(&[State]),
) -> Result<()> {
    let mut states = Vec::with_capacity(BLOCK_ROWS.min(batch.num_rows()));
    for start in (0..batch.num_rows()).step_by(BLOCK_ROWS) {
        let rows = BLOCK_ROWS.min(batch.num_rows() - start);
        states.clear();
        states.resize(rows, seed.0);
        for column in batch.columns() {
            fold_column(&column.slice(start, rows), &mut states)?;
        }
        for state in &mut states {
            fold(state, END);
        }
        take(&states);
    }
    Ok(())
}

/// Refuses types that have no place in a stored dataset.
fn check(column: &str, field: &Field) -> Result<()> {
    match field.data_type() {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => check(column, item),
        DataType::Struct(fields) => fields.iter().try_for_each(|child| check(column, child)),
        DataType::Dictionary(_, value) => check(
            column,
            &Field::new(field.name(), value.as_ref().clone(), true),
        ),
        DataType::Null
        | DataType::Boolean
        | DataType::FixedSizeBinary(_)
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView => Ok(()),
        plain if plain.primitive_width().is_some() => Ok(()),
        other => Err(unsupported(column, other)),
    }
}

fn unsupported(column: &str, data_type: &DataType) -> StoreError {
    StoreError::Rows(format!(
        "column `{column}` has type {data_type}, which cannot be stored; cast it to a plain type"
    ))
}

/// Folds the values of a column into the states of its rows.
fn fold_column(array: &ArrayRef, states: &mut [State]) -> Result<()> {
    let nulls = array.nulls();
    match array.data_type() {
        DataType::Null => states.iter_mut().for_each(|state| fold(state, NULL)),
        DataType::Boolean => {
            let values = array.as_boolean().values();
            fold_values(states, nulls, |row| fixed(u64::from(values.value(row))));
        }
        DataType::Utf8 => {
            let text = array.as_string::<i32>();
            fold_bytes(text.offsets(), text.values(), nulls, states);
        }
        DataType::LargeUtf8 => {
            let text = array.as_string::<i64>();
            fold_bytes(text.offsets(), text.values(), nulls, states);
        }
        DataType::Utf8View => {
            let text = array.as_string_view();
            fold_values(states, nulls, |row| bytes_words(text.value(row).as_bytes()));
        }
        DataType::Binary => {
            let bytes = array.as_binary::<i32>();
            fold_bytes(bytes.offsets(), bytes.values(), nulls, states);
        }
        DataType::LargeBinary => {
            let bytes = array.as_binary::<i64>();
            fold_bytes(bytes.offsets(), bytes.values(), nulls, states);
        }
        DataType::BinaryView => {
            let bytes = array.as_binary_view();
            fold_values(states, nulls, |row| bytes_words(bytes.value(row)));
        }
        DataType::List(_) => fold_list::<i32>(array, states)?,
        DataType::LargeList(_) => fold_list::<i64>(array, states)?,
        DataType::Map(_, _) => {
            let map = array.as_map();
            let entries: ArrayRef = std::sync::Arc::new(map.entries().clone());
            fold_items(map.offsets(), &entries, nulls, states)?;
        }
        DataType::FixedSizeList(_, _) => {
            let list = array.as_fixed_size_list();
            let width = i64::from(list.value_length());
            let offsets: Vec<i64> = (0..=list.len() as i64).map(|row| row * width).collect();
            fold_items(&offsets, list.values(), nulls, states)?;
        }
        DataType::Struct(_) => {
            let mut inner = vec![NESTED; states.len()];
            for column in array.as_struct().columns() {
                fold_column(column, &mut inner)?;
            }
            fold_values(states, nulls, |row| inner[row]);
        }
        DataType::Dictionary(key, value)
            if **key == DataType::Int32 && **value == DataType::LargeUtf8 && nulls.is_none() =>
        {
            fold_text_keys(array.as_dictionary(), states);
        }
        DataType::Dictionary(_, value) => {
            let plain = cast(array, value).map_err(|error| {
                StoreError::Rows(format!("cannot read the values of a dictionary: {error}"))
            })?;
            fold_column(&plain, states)?;
        }
        other => match fixed_width(other) {
            Some(width) => fold_fixed(array, width, states),
            None => return Err(unsupported("?", other)),
        },
    }
    Ok(())
}

/// Width of values that lie in memory one after the other, in whole bytes.
fn fixed_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        DataType::Dictionary(_, _) => None,
        other => other.primitive_width(),
    }
}

fn fold_fixed(array: &ArrayRef, width: usize, states: &mut [State]) {
    let data = array.to_data();
    let bytes = fixed_bytes(&data, width);
    let nulls = array.nulls();
    match width {
        1 => fold_values(states, nulls, |row| fixed(u64::from(bytes[row]))),
        2 => {
            let (words, _) = bytes.as_chunks::<2>();
            fold_values(states, nulls, |row| {
                fixed(u64::from(u16::from_le_bytes(words[row])))
            });
        }
        4 => {
            let (words, _) = bytes.as_chunks::<4>();
            fold_values(states, nulls, |row| {
                fixed(u64::from(u32::from_le_bytes(words[row])))
            });
        }
        8 => {
            let (words, _) = bytes.as_chunks::<8>();
            fold_values(states, nulls, |row| fixed(u64::from_le_bytes(words[row])));
        }
        wide => fold_values(states, nulls, |row| {
            bytes_words(&bytes[row * wide..(row + 1) * wide])
        }),
    }
}

fn fixed_bytes(data: &arrow::array::ArrayData, width: usize) -> &[u8] {
    let start = data.offset() * width;
    &data.buffers()[0].as_slice()[start..start + data.len() * width]
}

/// Folds in text or bytes that lie between offsets.
fn fold_bytes<O: OffsetSizeTrait>(
    offsets: &[O],
    bytes: &[u8],
    nulls: Option<&NullBuffer>,
    states: &mut [State],
) {
    let ranges = offsets
        .windows(2)
        .map(|pair| (pair[0].as_usize(), pair[1].as_usize()));
    match nulls.filter(|nulls| nulls.null_count() > 0) {
        None => {
            for (state, (start, end)) in states.iter_mut().zip(ranges) {
                fold(state, words_between(bytes, start, end));
            }
        }
        Some(nulls) => {
            for ((state, (start, end)), is_valid) in states.iter_mut().zip(ranges).zip(nulls) {
                fold(state, or_null(words_between(bytes, start, end), is_valid));
            }
        }
    }
}

/// Folds in texts that come as a dictionary. Equal neighbours are looked at once.
fn fold_text_keys(array: &DictionaryArray<Int32Type>, states: &mut [State]) {
    let texts = array.values().as_string::<i64>();
    let (offsets, bytes) = (texts.value_offsets(), texts.value_data());
    let mut last = None;
    for (state, key) in states.iter_mut().zip(array.keys().values()) {
        let words = match last {
            Some((known, words)) if known == *key => words,
            _ => {
                let place = *key as usize;
                let (start, end) = (offsets[place] as usize, offsets[place + 1] as usize);
                let words = words_between(bytes, start, end);
                or_null(words, texts.is_valid(place))
            }
        };
        last = Some((*key, words));
        fold(state, words);
    }
}

fn fold_list<O: OffsetSizeTrait>(array: &ArrayRef, states: &mut [State]) -> Result<()> {
    let list = array.as_list::<O>();
    fold_items(list.offsets(), list.values(), list.nulls(), states)
}

/// Folds in lists whose items lie between offsets.
fn fold_items<O: OffsetSizeTrait>(
    offsets: &[O],
    values: &ArrayRef,
    nulls: Option<&NullBuffer>,
    states: &mut [State],
) -> Result<()> {
    let (first, last) = (offsets[0].as_usize(), offsets[states.len()].as_usize());
    let items = values.slice(first, last - first);
    let range = |row: usize| offsets[row].as_usize() - first..offsets[row + 1].as_usize() - first;
    let Some(width) = fixed_width(items.data_type()) else {
        let mut inner = vec![NESTED; items.len()];
        fold_column(&items, &mut inner)?;
        fold_values(states, nulls, |row| {
            bytes_words(inner[range(row)].as_flattened().to_byte_slice())
        });
        return Ok(());
    };
    let data = items.to_data();
    let bytes = fixed_bytes(&data, width);
    match items.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => fold_values(states, nulls, |row| {
            let range = range(row);
            words_between(bytes, range.start * width, range.end * width)
        }),
        Some(item_nulls) => fold_values(states, nulls, |row| {
            items_words(bytes, width, item_nulls, range(row))
        }),
    }
    Ok(())
}

/// Hash of fixed-width items some of which may be null. Without a null it is that of their bytes.
fn items_words(
    bytes: &[u8],
    width: usize,
    nulls: &NullBuffer,
    range: std::ops::Range<usize>,
) -> State {
    if range.clone().all(|item| nulls.is_valid(item)) {
        return bytes_words(&bytes[range.start * width..range.end * width]);
    }
    let mut text = Vec::with_capacity(range.len() * (width + 1));
    for item in range {
        let is_valid = nulls.is_valid(item);
        text.push(u8::from(is_valid));
        if is_valid {
            text.extend_from_slice(&bytes[item * width..(item + 1) * width]);
        }
    }
    halves(xxh3_128_with_seed(&text, WITH_NULLS))
}

/// Folds one value into each state; null where the mask says so.
fn fold_values(states: &mut [State], nulls: Option<&NullBuffer>, value: impl Fn(usize) -> State) {
    match nulls.filter(|nulls| nulls.null_count() > 0) {
        None => {
            for (row, state) in states.iter_mut().enumerate() {
                fold(state, value(row));
            }
        }
        Some(nulls) => {
            for (row, (state, is_valid)) in states.iter_mut().zip(nulls).enumerate() {
                fold(state, or_null(value(row), is_valid));
            }
        }
    }
}

/// Chosen by arithmetic, since a branch that depends on data costs more than words that are not needed.
#[inline]
fn or_null([first, second]: State, is_valid: bool) -> State {
    let mask = u64::from(is_valid).wrapping_neg();
    [
        first & mask | NULL[0] & !mask,
        second & mask | NULL[1] & !mask,
    ]
}

/// The words of text or bytes.
fn bytes_words(bytes: &[u8]) -> State {
    words_between(bytes, 0, bytes.len())
}

/// The words of text or bytes between two places.
#[inline]
fn words_between(bytes: &[u8], start: usize, end: usize) -> State {
    let length = end - start;
    if length > SHORT {
        return halves(xxh3_128(&bytes[start..end]));
    }
    // What follows in memory is read too, where there is enough of it, and cut off: that takes no branch on the length.
    let word = match bytes[start..].first_chunk::<WORDS>() {
        Some(chunk) => u128::from_le_bytes(*chunk) & OWN_BITS[length],
        None => {
            let mut chunk = [0; WORDS];
            chunk[..length].copy_from_slice(&bytes[start..end]);
            u128::from_le_bytes(chunk)
        }
    };
    let [first, second] = halves(word);
    [first, second | (length as u64) << 56]
}

const fn own_bits() -> [u128; SHORT + 1] {
    let mut bits = [0; SHORT + 1];
    let mut length = 0;
    while length <= SHORT {
        bits[length] = (1 << (8 * length)) - 1;
        length += 1;
    }
    bits
}

fn halves(hash: u128) -> State {
    [hash as u64, (hash >> 64) as u64]
}

#[inline]
fn fixed(word: u64) -> State {
    [word, word.rotate_left(32) ^ FIXED]
}

/// Takes two words into a state: a bijection of the 128 bits, since each product has its lower half from an odd factor, and its
/// upper half is added to what it does not depend on.
#[inline]
fn fold(state: &mut State, value: State) {
    let (low, high) = product(state[0] ^ value[0], 0xd6e8_feb8_6659_fd93);
    let (lower, higher) = product(
        (state[1] ^ value[1]).wrapping_add(high),
        0xa076_1d64_78bd_642f,
    );
    *state = [low.wrapping_add(higher), lower];
}

#[inline]
fn product(left: u64, right: u64) -> (u64, u64) {
    let product = u128::from(left) * u128::from(right);
    (product as u64, (product >> 64) as u64)
}
