//! One value of a data file, whatever the format: what layouts are read from.

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::json;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    /// Nothing.
    Null,
    /// Text.
    Text(String),
    /// A number or a truth value, spelled as it is in the file.
    Plain(String),
    /// Bytes, as Parquet has them.
    Bytes(Vec<u8>),
    /// Values in order.
    List(Vec<Cell>),
    /// Values by name.
    Struct(Vec<(String, Cell)>),
}

impl Cell {
    /// The value at a name, or at a path of names such as `reward_model.ground_truth`. A name with dots in it comes first.
    pub(super) fn at(&self, path: &str) -> Option<&Cell> {
        if let Some(cell) = self.field(path) {
            return Some(cell);
        }
        let (first, rest) = path.split_once('.')?;
        self.field(first)?.at(rest)
    }

    fn field(&self, name: &str) -> Option<&Cell> {
        match self {
            Self::Struct(fields) => fields
                .iter()
                .rev()
                .find(|(field, _)| field == name)
                .map(|(_, cell)| cell),
            Self::List(items) => items.get(name.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The same, with text that spells a list or an object read as such: tables without nested columns have them so.
    pub(super) fn opened(&self) -> Option<Cell> {
        let Self::Text(text) = self else { return None };
        let text = text.trim();
        if !text.starts_with(['[', '{']) {
            return None;
        }
        match json::parse(text.as_bytes()) {
            Ok(cell @ (Self::List(_) | Self::Struct(_))) => Some(cell),
            _ => None,
        }
    }

    /// Whether there is nothing: no value, blank text, an empty list.
    pub(super) fn is_blank(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Text(text) => text.trim().is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Plain(_) | Self::Struct(_) => false,
        }
    }

    /// Its text, for text, numbers and truth values.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Plain(text) => Some(text),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "text",
            Self::Plain(_) => "a number or truth value",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Struct(_) => "an object",
        }
    }

    /// A value of an Arrow column.
    pub(super) fn of_arrow(array: &dyn Array, row: usize) -> Result<Self, ArrowError> {
        if array.is_null(row) {
            return Ok(Self::Null);
        }
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string::<i32>().value(row).to_owned()),
            DataType::LargeUtf8 => Self::Text(array.as_string::<i64>().value(row).to_owned()),
            DataType::Utf8View => Self::Text(array.as_string_view().value(row).to_owned()),
            DataType::Binary => Self::Bytes(array.as_binary::<i32>().value(row).to_vec()),
            DataType::LargeBinary => Self::Bytes(array.as_binary::<i64>().value(row).to_vec()),
            DataType::BinaryView => Self::Bytes(array.as_binary_view().value(row).to_vec()),
            DataType::List(_) => Self::of_items(array.as_list::<i32>().value(row).as_ref())?,
            DataType::LargeList(_) => Self::of_items(array.as_list::<i64>().value(row).as_ref())?,
            DataType::FixedSizeList(..) => {
                Self::of_items(array.as_fixed_size_list().value(row).as_ref())?
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns();
                let cells = fields.iter().zip(columns).map(|(field, column)| {
                    Ok((field.name().clone(), Self::of_arrow(column.as_ref(), row)?))
                });
                Self::Struct(cells.collect::<Result<_, ArrowError>>()?)
            }
            DataType::Dictionary(_, values)
                if matches!(**values, DataType::Utf8 | DataType::LargeUtf8) =>
            {
                Self::Text(shown(array, row)?)
            }
            _ => Self::Plain(shown(array, row)?),
        })
    }

    fn of_items(items: &dyn Array) -> Result<Self, ArrowError> {
        let cells = (0..items.len()).map(|index| Self::of_arrow(items, index));
        Ok(Self::List(cells.collect::<Result<_, _>>()?))
    }
}

fn shown(array: &dyn Array, row: usize) -> Result<String, ArrowError> {
    let options = FormatOptions::default();
    Ok(ArrayFormatter::try_new(array, &options)?
        .value(row)
        .to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_into_objects_and_names_with_dots_come_first() {
        let cell = json::parse(
            br#"{"reward_model": {"ground_truth": "7", "list": [{"x": 1}]}, "a.b": "whole", "a": {"b": "part"}}"#,
        )
        .unwrap();
        let text = |path: &str| cell.at(path).and_then(Cell::text);
        assert_eq!(text("reward_model.ground_truth"), Some("7"));
        assert_eq!(text("reward_model.list.0.x"), Some("1"));
        assert_eq!(text("a.b"), Some("whole"));
        assert_eq!(cell.at("reward_model.nothing"), None);
        assert_eq!(cell.at("a.b.c"), None);
    }
}
