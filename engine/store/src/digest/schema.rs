//! Schemas in words: what of names and types enters a digest.

use arrow::datatypes::{DataType, Field, Schema};

/// Names, types and nullability.
pub(super) fn describe(schema: &Schema) -> String {
    fields(schema.fields(), &field)
}

/// Names and types as far as they change what a value is: text is text whatever the width of its offsets, a dictionary is
/// its values, and nullability says nothing about the values that are there.
pub(super) fn describe_logical(schema: &Schema) -> String {
    fields(schema.fields(), &logical_field)
}

fn fields<'a, F: AsRef<Field> + 'a>(
    all: impl IntoIterator<Item = &'a F>,
    describe: &dyn Fn(&Field) -> String,
) -> String {
    let described: Vec<String> = all
        .into_iter()
        .map(|field| describe(field.as_ref()))
        .collect();
    described.join(",")
}

fn field(field: &Field) -> String {
    let mark = if field.is_nullable() { "?" } else { "" };
    format!("{:?}:{}{mark}", field.name(), exact_type(field.data_type()))
}

fn exact_type(data_type: &DataType) -> String {
    match data_type {
        DataType::List(item) => format!("List<{}>", field(item)),
        DataType::LargeList(item) => format!("LargeList<{}>", field(item)),
        DataType::FixedSizeList(item, width) => format!("FixedSizeList<{},{width}>", field(item)),
        DataType::Map(item, _) => format!("Map<{}>", field(item)),
        DataType::Struct(children) => format!("Struct<{}>", fields(children, &field)),
        plain => format!("{plain:?}"),
    }
}

fn logical_field(field: &Field) -> String {
    format!("{:?}:{}", field.name(), logical_type(field.data_type()))
}

fn logical_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytes".to_owned(),
        // Writers of Parquet disagree about the name of a list's items.
        DataType::List(item) | DataType::LargeList(item) => {
            format!("list<{}>", logical_type(item.data_type()))
        }
        DataType::FixedSizeList(item, width) => {
            format!("list<{},{width}>", logical_type(item.data_type()))
        }
        DataType::Map(item, _) => format!("map<{}>", logical_type(item.data_type())),
        DataType::Struct(children) => format!("struct<{}>", fields(children, &logical_field)),
        DataType::Dictionary(_, value) => logical_type(value),
        plain => format!("{plain:?}"),
    }
}
