//! Scalar SQL expressions over the rows of a batch, for operators that compute a number by an expression of the user's.
//!
//! Planned and computed as DataFusion does in a query, without one: nothing is read and no thread is started.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Float64Type, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::error::QueryError;

/// Named expressions that each give a number, or a truth value as 1 or 0, for every row.
#[derive(Clone, Debug)]
pub struct Expressions {
    compiled: Vec<Compiled>,
    schema: SchemaRef,
}

#[derive(Clone, Debug)]
struct Compiled {
    name: String,
    expression: Arc<dyn PhysicalExpr>,
    columns: BTreeSet<String>,
}

impl Compiled {
    /// A failure on the data, with the name of the expression.
    fn failed(&self, error: &DataFusionError) -> QueryError {
        let (QueryError::Run(text) | QueryError::Query(text)) = QueryError::run(error);
        QueryError::Run(format!("expression `{}`: {text}", self.name))
    }
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpressionError {
    /// Name of the expression.
    pub name: String,
    /// What is wrong: a lower-case fragment.
    pub message: String,
    /// What to do, in the imperative.
    pub help: Option<String>,
}

/// What expressions gave for the rows of a batch.
#[derive(Clone, Debug)]
pub struct Values(Vec<Float64Array>);

impl Values {
    /// The values of a row, in the order of the expressions; None for null.
    #[must_use]
    pub fn row(&self, row: usize) -> Vec<Option<f64>> {
        let mut values = Vec::new();
        self.row_into(row, &mut values);
        values
    }

    /// As [`Values::row`], into a buffer that is used again.
    pub fn row_into(&self, row: usize, values: &mut Vec<Option<f64>>) {
        values.clear();
        let columns = self.0.iter();
        values.extend(columns.map(|column| column.is_valid(row).then(|| column.value(row))));
    }

    /// One column for each expression.
    #[must_use]
    pub fn into_columns(self) -> Vec<Float64Array> {
        self.0
    }
}

/// Columns of several tables side by side; of equal names the first counts.
#[must_use]
pub fn side_by_side(schemas: &[&Schema]) -> SchemaRef {
    let mut seen = BTreeSet::new();
    let fields: Vec<FieldRef> = schemas
        .iter()
        .flat_map(|schema| schema.fields().iter())
        .filter(|field| seen.insert(field.name().clone()))
        .cloned()
        .collect();
    Arc::new(Schema::new(fields))
}

impl Expressions {
    /// Compiles `(name, expression)` pairs over the columns of a table.
    ///
    /// # Errors
    /// One for each expression that is no scalar expression of a number over these columns, or gives something else in
    /// every run.
    pub fn compile(
        expressions: &[(String, String)],
        schema: &SchemaRef,
    ) -> Result<Self, Vec<ExpressionError>> {
        let mut compiled = Vec::new();
        let mut errors = Vec::new();
        if !expressions.is_empty() {
            let compiler = Compiler::new(schema);
            for (name, text) in expressions {
                match compiler.compile(name, text) {
                    Ok(expression) => compiled.push(expression),
                    Err(fault) => errors.push(fault.named(name)),
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            compiled,
            schema: Arc::clone(schema),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.compiled.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.compiled.is_empty()
    }

    /// Names of the columns that they use.
    #[must_use]
    pub fn columns(&self) -> BTreeSet<String> {
        let columns = self.compiled.iter().flat_map(|each| each.columns.iter());
        columns.cloned().collect()
    }

    /// Names of the columns that each of them uses.
    pub fn columns_of_each(&self) -> impl Iterator<Item = &BTreeSet<String>> {
        self.compiled.iter().map(|each| &each.columns)
    }

    /// Computes all of them. `batch` has the columns that they use, by name; others are not looked at.
    ///
    /// # Errors
    /// When a column that is used is missing or of another type, or an expression fails on a row.
    pub fn evaluate(&self, batch: &RecordBatch) -> Result<Values, QueryError> {
        let batch = self.arranged(batch)?;
        let values = self.compiled.iter().map(|each| {
            let value = each
                .expression
                .evaluate(&batch)
                .and_then(|value| value.into_array(batch.num_rows()))
                .map_err(|error| each.failed(&error))?;
            numbers(&value)
        });
        Ok(Values(values.collect::<Result<_, QueryError>>()?))
    }

    /// The columns in the places that the expressions know. Columns that are not used stay empty.
    fn arranged(&self, batch: &RecordBatch) -> Result<RecordBatch, QueryError> {
        let used = self.columns();
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        for field in self.schema.fields() {
            let name = field.name();
            let (data_type, column) = if used.contains(name) {
                let column = batch.column_by_name(name).ok_or_else(|| {
                    QueryError::Run(format!("column `{name}` of an expression is missing"))
                })?;
                let column = if column.data_type() == field.data_type() {
                    Arc::clone(column)
                } else {
                    cast(column, field.data_type())
                        .map_err(|error| QueryError::Run(error.to_string()))?
                };
                (field.data_type().clone(), column)
            } else {
                (
                    DataType::Null,
                    arrow::array::new_null_array(&DataType::Null, batch.num_rows()),
                )
            };
            fields.push(arrow::datatypes::Field::new(name, data_type, true));
            columns.push(column);
        }
        let options =
            arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
            .map_err(|error| QueryError::Run(error.to_string()))
    }
}

/// A column of numbers or truth values as numbers.
fn numbers(values: &ArrayRef) -> Result<Float64Array, QueryError> {
    if let Some(truths) = values.as_boolean_opt() {
        let number = |truth: Option<bool>| truth.map(|truth| f64::from(u8::from(truth)));
        return Ok(BooleanArray::iter(truths).map(number).collect());
    }
    let numbers =
        cast(values, &DataType::Float64).map_err(|error| QueryError::Run(error.to_string()))?;
    Ok(numbers.as_primitive::<Float64Type>().clone())
}

/// What to do about an expression that cannot be read.
const EXAMPLE: &str =
    "write one SQL expression over the columns of a row, for example `sample = 0`";

/// What is wrong with an expression whose name is not known here.
enum Wrong {
    /// It cannot be planned.
    Plan(QueryError),
    /// It is something else than an expression may be.
    Kind { message: String, help: &'static str },
}

impl Wrong {
    fn named(self, name: &str) -> ExpressionError {
        let (message, help) = match self {
            Self::Kind { message, help } => (message, help.to_owned()),
            Self::Plan(error) => {
                let message = error.to_string();
                // The columns that there are belong into the help.
                match message.split_once("; columns are ") {
                    Some((message, columns)) => {
                        (message.to_owned(), format!("the columns are {columns}"))
                    }
                    None => (message, EXAMPLE.to_owned()),
                }
            }
        };
        ExpressionError {
            name: name.to_owned(),
            message,
            help: Some(help),
        }
    }
}

struct Compiler {
    context: SessionContext,
    schema: DFSchema,
}

impl Compiler {
    fn new(schema: &SchemaRef) -> Self {
        let mut config = SessionConfig::new().with_information_schema(false);
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let schema = DFSchema::try_from(Arc::clone(schema))
            .expect("columns side by side have different names");
        Self {
            context: SessionContext::new_with_config(config),
            schema,
        }
    }

    fn compile(&self, name: &str, text: &str) -> Result<Compiled, Wrong> {
        let planned = |error: &DataFusionError| Wrong::Plan(QueryError::query(error));
        let expression = self
            .context
            .parse_sql_expr(text, &self.schema)
            .map_err(|error| planned(&error))?
            .unalias();
        check_kind(&expression)?;
        let columns = expression
            .column_refs()
            .into_iter()
            .map(|column| column.name.clone())
            .collect();
        // As a query does it before it runs; some functions exist only until then.
        let physical = self
            .simplified(expression.clone())
            .and_then(|simple| self.context.create_physical_expr(simple, &self.schema))
            .map_err(|error| planned(&error))?;
        let data_type = physical
            .data_type(self.schema.as_arrow())
            .or_else(|_| expression.get_type(&self.schema))
            .map_err(|error| planned(&error))?;
        if !data_type.is_numeric() && data_type != DataType::Boolean {
            return Err(Wrong::Kind {
                message: format!("it gives {}, and a number is needed", shown(&data_type)),
                help: "let it give a number or a truth value, for example with CASE WHEN ... THEN 1 ELSE 0 END",
            });
        }
        Ok(Compiled {
            name: name.to_owned(),
            expression: physical,
            columns,
        })
    }
}

impl Compiler {
    fn simplified(&self, expression: Expr) -> Result<Expr, DataFusionError> {
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(self.schema.clone()))
            .build();
        let simplifier = ExprSimplifier::new(context);
        simplifier.simplify(simplifier.coerce(expression, &self.schema)?)
    }
}

/// A type in words.
fn shown(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Null => "null".to_owned(),
        DataType::List(_) | DataType::LargeList(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}

/// Only what depends on one row alone, and on nothing else, can be a number of that row.
fn check_kind(expression: &Expr) -> Result<(), Wrong> {
    let mut found: Option<Wrong> = None;
    let mut kind = |message: String, help: &'static str| {
        found.get_or_insert(Wrong::Kind { message, help });
    };
    let row = "use only what one row says; for anything over several rows put a `sql` stage before";
    let visited = expression.apply(|node| {
        match node {
            Expr::AggregateFunction(call) => {
                kind(
                    format!("`{}()` is over several rows", call.func.name()),
                    row,
                );
            }
            Expr::WindowFunction(call) => {
                kind(format!("`{}()` is over several rows", call.fun.name()), row);
            }
            Expr::ScalarSubquery(_)
            | Expr::InSubquery(_)
            | Expr::Exists(_)
            | Expr::SetComparison(_)
            | Expr::OuterReferenceColumn(..) => kind("it has a query within".to_owned(), row),
            Expr::Unnest(_) => kind("`unnest()` gives several rows".to_owned(), row),
            Expr::Placeholder(_) | Expr::ScalarVariable(..) => kind(
                "it has a variable that nothing sets".to_owned(),
                "write the value into the expression",
            ),
            Expr::ScalarFunction(call)
                if call.func.signature().volatility != Volatility::Immutable =>
            {
                kind(
                    format!("`{}()` gives something else in every run", call.func.name()),
                    "write the value into the expression",
                );
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    visited.map_err(|error| Wrong::Plan(QueryError::query(&error)))?;
    found.map_or(Ok(()), Err)
}

#[cfg(test)]
#[path = "expressions_tests.rs"]
mod tests;
