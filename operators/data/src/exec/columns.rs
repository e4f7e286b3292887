//! Types of columns as a pipeline spells them, and which Arrow types count as such.

use std::fmt;
use std::str::FromStr;

use arrow::datatypes::DataType;
use schemars::JsonSchema;
use schemas::tables::{TEXT, list};
use serde::{Deserialize, Serialize};

/// The type of a column that a program writes: `text`, `integer`, `number` or `boolean`, `list of` one of these, with a `?` at
/// the end if it may be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ColumnType {
    item: Item,
    is_list: bool,
    /// Whether it may be null.
    pub is_nullable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Text,
    Integer,
    Number,
    Boolean,
}

const ITEMS: [(&str, Item); 4] = [
    ("text", Item::Text),
    ("integer", Item::Integer),
    ("number", Item::Number),
    ("boolean", Item::Boolean),
];

impl ColumnType {
    /// A text that may be null: the type of the column `error`.
    pub(super) const ERROR: Self = Self {
        item: Item::Text,
        is_list: false,
        is_nullable: true,
    };

    /// The type as it is stored where no table says otherwise.
    pub(super) fn storage(self) -> DataType {
        let item = match self.item {
            Item::Text => TEXT,
            Item::Integer => DataType::Int64,
            Item::Number => DataType::Float64,
            Item::Boolean => DataType::Boolean,
        };
        if self.is_list { list(item) } else { item }
    }

    /// Whether values of an Arrow type can be taken for this type, whatever their width or layout.
    pub(super) fn takes(self, found: &DataType) -> bool {
        match found {
            DataType::Dictionary(_, values) => self.takes(values),
            // What a library writes for a column that has nothing but nulls.
            DataType::Null => self.is_nullable,
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::LargeListView(item)
            | DataType::FixedSizeList(item, _) => {
                self.is_list
                    && (self.item.takes(item.data_type()) || *item.data_type() == DataType::Null)
            }
            _ => !self.is_list && self.item.takes(found),
        }
    }
}

impl Item {
    fn takes(self, found: &DataType) -> bool {
        match self {
            Self::Text => matches!(
                found,
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
            ),
            Self::Integer => found.is_integer(),
            Self::Number => found.is_floating(),
            Self::Boolean => *found == DataType::Boolean,
        }
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_list {
            formatter.write_str("list of ")?;
        }
        let (name, _) = ITEMS
            .iter()
            .find(|(_, item)| *item == self.item)
            .expect("every item has a name");
        formatter.write_str(name)?;
        formatter.write_str(if self.is_nullable { "?" } else { "" })
    }
}

impl From<ColumnType> for String {
    fn from(column: ColumnType) -> Self {
        column.to_string()
    }
}

impl TryFrom<String> for ColumnType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for ColumnType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.trim();
        let (words, is_nullable) = match words.strip_suffix('?') {
            Some(words) => (words.trim_end(), true),
            None => (words, false),
        };
        let (name, is_list) = match words.strip_prefix("list of ") {
            Some(name) => (name.trim(), true),
            None => (words, false),
        };
        let item = ITEMS.iter().find(|(spelling, _)| *spelling == name);
        let Some((_, item)) = item else {
            return Err(format!(
                "unknown type `{text}`, expected text, integer, number or boolean, as in `number`, `text?` (may be null) or \
                 `list of number`"
            ));
        };
        Ok(Self {
            item: *item,
            is_list,
            is_nullable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_written() {
        for text in [
            "text",
            "integer?",
            "number",
            "boolean",
            "list of number",
            "list of text?",
        ] {
            assert_eq!(text.parse::<ColumnType>().unwrap().to_string(), text);
        }
        for text in [
            "float",
            "",
            "?",
            "list of list of number",
            "lists of number",
        ] {
            let error = text.parse::<ColumnType>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
