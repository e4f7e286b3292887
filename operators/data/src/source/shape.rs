//! What the columns of a file hold.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Schema};

use super::cell::Cell;

/// What a column holds, as far as the file or its first rows say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Unknown,
    Scalar,
    Bytes,
    List(Box<Shape>),
    Struct(BTreeMap<String, Shape>),
}

impl Shape {
    pub(super) fn of_schema(schema: &Schema) -> Self {
        let fields = schema.fields().iter();
        Self::Struct(
            fields
                .map(|field| (field.name().clone(), Self::of_type(field.data_type())))
                .collect(),
        )
    }

    fn of_type(data_type: &DataType) -> Self {
        match data_type {
            DataType::Null => Self::Unknown,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Self::Bytes,
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                Self::List(Box::new(Self::of_type(item.data_type())))
            }
            DataType::Struct(fields) => {
                let fields = fields.iter();
                Self::Struct(
                    fields
                        .map(|field| (field.name().clone(), Self::of_type(field.data_type())))
                        .collect(),
                )
            }
            _ => Self::Scalar,
        }
    }

    /// The shape of some rows together.
    pub(super) fn of_rows<'a>(rows: impl IntoIterator<Item = &'a Cell>) -> Self {
        let merged = |shape: Self, cell: &Cell| shape.and(Self::of_cell(cell));
        rows.into_iter().fold(Self::Unknown, merged)
    }

    fn of_cell(cell: &Cell) -> Self {
        match cell {
            Cell::Null => Self::Unknown,
            Cell::Text(_) | Cell::Plain(_) => Self::Scalar,
            Cell::Bytes(_) => Self::Bytes,
            Cell::List(items) => Self::List(Box::new(Self::of_rows(items))),
            Cell::Struct(fields) => {
                let fields = fields.iter();
                Self::Struct(
                    fields
                        .map(|(name, cell)| (name.clone(), Self::of_cell(cell)))
                        .collect(),
                )
            }
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, shape) | (shape, Self::Unknown) => shape,
            (Self::List(one), Self::List(other)) => Self::List(Box::new(one.and(*other))),
            (Self::Struct(mut fields), Self::Struct(others)) => {
                for (name, shape) in others {
                    let known = fields.remove(&name).unwrap_or(Self::Unknown);
                    fields.insert(name, known.and(shape));
                }
                Self::Struct(fields)
            }
            // Text in one row and a list in another: the rows will tell.
            (one, _) => one,
        }
    }

    /// What is at a path, as [`Cell::at`] finds it. What text may spell is not known.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        match self {
            Self::Struct(fields) => {
                if let Some(shape) = fields.get(path) {
                    return Some(shape);
                }
                let (first, rest) = path.split_once('.')?;
                fields.get(first)?.at(rest)
            }
            Self::List(item) => match path.split_once('.') {
                Some((index, rest)) if index.parse::<usize>().is_ok() => item.at(rest),
                None if path.parse::<usize>().is_ok() => Some(item),
                _ => None,
            },
            Self::Unknown | Self::Scalar => Some(&Self::Unknown),
            Self::Bytes => None,
        }
    }

    pub(super) fn names(&self) -> Vec<&str> {
        match self {
            Self::Struct(fields) => fields.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        matches!(self, Self::Struct(fields) if fields.contains_key(name))
    }

    pub(super) fn has_turns(&self, name: &str) -> bool {
        let Some(Self::List(turn)) = self.at(name) else {
            return false;
        };
        (turn.has("role") || turn.has("from")) && (turn.has("content") || turn.has("value"))
    }
}
