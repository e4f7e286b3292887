//! Rows as JSON lines and as comma-separated values.

use std::io::Write;

use engine_core::Dataset;
use engine_query::rows_to_json;
use engine_store::Store;
use serde_json::Value;

/// One JSON object a line.
pub(super) fn json_lines(
    store: &Store,
    dataset: &Dataset,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    for batch in store.read(dataset) {
        for row in rows_to_json(&[batch?])? {
            serde_json::to_writer(&mut *out, &Value::Object(row))?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// The names of the columns, then a line for each row.
pub(super) fn csv(store: &Store, dataset: &Dataset, out: &mut impl Write) -> anyhow::Result<()> {
    let schema = store.schema(dataset)?;
    let names = schema.fields().iter();
    write_line(out, names.map(|field| Value::String(field.name().clone())))?;
    for batch in store.read(dataset) {
        for row in rows_to_json(&[batch?])? {
            write_line(out, row.into_iter().map(|(_, value)| value))?;
        }
    }
    Ok(())
}

/// One line; nested values are JSON text, nulls are empty.
fn write_line(out: &mut impl Write, values: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let cells: Vec<String> = values
        .map(|value| match value {
            Value::Null => String::new(),
            Value::String(text) => quoted(&text),
            other => quoted(&other.to_string()),
        })
        .collect();
    Ok(writeln!(out, "{}", cells.join(","))?)
}

fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cells_survive_commas_quotes_and_nested_values() {
        let mut out = Vec::new();
        let values = [
            Value::Null,
            "a,b".into(),
            "say \"x\"".into(),
            1.5.into(),
            serde_json::json!([1, 2]),
            "".into(),
        ];
        write_line(&mut out, values.into_iter()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            ",\"a,b\",\"say \"\"x\"\"\",1.5,\"[1,2]\",\"\"\n"
        );
    }
}
