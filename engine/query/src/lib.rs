//! DataFusion over the store: the adapter that query operators run on, and the tables of `metis-flow sql`.
//!
//! Knows URLs of Parquet files and the run records. Reads through the stores that the process has open, and writes to none.

mod catalog;
mod conform;
mod error;
mod expressions;
mod json;
mod narrow;
mod parts;
mod session;

pub use catalog::{Catalog, StoredDataset, StoredRun};
pub use conform::{conform, storage_schema};
pub use error::QueryError;
pub use expressions::{ExpressionError, Expressions, Values, side_by_side};
pub use json::rows_to_json;
pub use narrow::narrow_rows;
pub use session::{Order, QuerySession};

pub use datafusion::dataframe::DataFrame;
