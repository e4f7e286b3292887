//! The card of a Hugging Face dataset: where its files are, for programs, and what it is, for people.

use arrow::datatypes::Schema;
use engine_core::Dataset;

use super::Exported;
use crate::text::count;

pub(super) fn text(exported: &Exported, dataset: &Dataset, schema: &Schema, split: &str) -> String {
    let mut text = format!(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: data/{split}-*.parquet\nsize_categories:\n- {}\n---\n\n",
        size_category(dataset.rows)
    );
    text.push_str(&format!(
        "# {}\n\n{} rows of the table `{}`, made by metis-flow {}.\n\n",
        exported.name,
        count(dataset.rows),
        dataset.table,
        crate::VERSION
    ));
    if let Some(pipeline) = &exported.pipeline {
        text.push_str(&format!("- pipeline: `{pipeline}`\n"));
    }
    if let Some(run) = &exported.run {
        text.push_str(&format!("- run: `{run}`\n"));
    }
    text.push_str(&format!("- digest of the rows: `{}`\n\n", dataset.digest));
    text.push_str("| column | type |\n| --- | --- |\n");
    for field in schema.fields() {
        // A vertical line would end the cell.
        let data_type = field.data_type().to_string().replace('|', "\\|");
        text.push_str(&format!("| `{}` | `{data_type}` |\n", field.name()));
    }
    text
}

/// The classes of size that Hugging Face sorts datasets by.
fn size_category(rows: u64) -> &'static str {
    match rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        10_000_000..100_000_000 => "10M<n<100M",
        100_000_000..1_000_000_000 => "100M<n<1B",
        _ => "n>1B",
    }
}
