//! Random choices inside a query: a function of the seed and a key, so that the same rows are drawn however they are
//! split or ordered.

use std::sync::Arc;

use arrow::array::{Array, AsArray, UInt64Array};
use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use engine_core::seed;

/// `draw(key)`: a uniform 64-bit number for a text.
pub(crate) fn draw(stage_seed: u64) -> ScalarUDF {
    let function = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let keys = arrays
            .first()
            .ok_or_else(|| DataFusionError::Internal("draw() needs a key".to_owned()))?
            .as_string::<i64>();
        let drawn: UInt64Array = (0..keys.len())
            .map(|row| {
                keys.is_valid(row)
                    .then(|| seed::derive(stage_seed, keys.value(row)))
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(drawn)))
    };
    create_udf(
        "draw",
        vec![DataType::LargeUtf8],
        DataType::UInt64,
        Volatility::Immutable,
        Arc::new(function),
    )
}
