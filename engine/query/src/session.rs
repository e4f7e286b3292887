//! Runs queries over input ports from synchronous code, and writes their rows to an output port.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use engine_core::{OperatorError, StageIo};
use futures::StreamExt;
use tokio::runtime::{Builder, Runtime};

use crate::conform::{conform, storage_schema};
use crate::error::QueryError;
use crate::parts::PartsTable;

/// Batches that may wait between the query and whoever takes its rows.
const BATCHES_IN_FLIGHT: usize = 4;

/// What a query may hold in memory; sorting and grouping put the rest on the disk.
const MEMORY_MIB: usize = 768;
/// What each thread needs at least to get on.
const THREAD_MIB: usize = 64;
/// A join whose tables have more rows sorts them, which can be done on the disk, where a hash table cannot. Goes by rows and
/// not by bytes, so that the order of the result does not depend on how the files are written.
const HASH_JOIN_ROWS: usize = 2_000_000;
/// Environment variable that says how many MiB a query may hold in memory.
pub(crate) const MEMORY_VARIABLE: &str = "METIS_FLOW_QUERY_MIB";

/// What a session promises of the order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Rows come in any order unless the query sorts them by a unique key. Uses all cores.
    Any,
    /// Equal tables and queries give equal rows in the same order, sums of floats included. Uses one core.
    Repeatable,
}

/// Tables by name, and queries over them. Works on any thread, inside or outside an async runtime.
pub struct QuerySession {
    context: SessionContext,
    order: Order,
    // Taken when dropped, since a runtime must not be dropped inside another one.
    runtime: Option<Runtime>,
}

impl QuerySession {
    /// A session without tables, for small data or plans.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(order: Order) -> Result<Self, QueryError> {
        Self::build(
            order,
            DiskManagerMode::OsTmpDirectory,
            memory_bytes(threads(order)),
        )
    }

    /// A session without tables that puts into this folder what has no room in memory.
    ///
    /// # Errors
    /// When the system gives no threads or the folder cannot be written.
    pub fn with_scratch(order: Order, scratch: &Path) -> Result<Self, QueryError> {
        Self::build(
            order,
            DiskManagerMode::Directories(vec![scratch.to_owned()]),
            memory_bytes(threads(order)),
        )
    }

    fn build(order: Order, spill: DiskManagerMode, memory: usize) -> Result<Self, QueryError> {
        let threads = threads(order);
        let mut config = SessionConfig::new()
            .with_target_partitions(threads)
            .with_information_schema(false);
        let options = config.options_mut();
        options.sql_parser.map_string_types_to_utf8view = false;
        options.execution.parquet.schema_force_view_types = false;
        let pool = FairSpillPool::new(memory);
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(spill))
            .build_arc()
            .map_err(|error| QueryError::run(&error))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("query")
            .enable_all()
            .build()
            .map_err(|error| QueryError::Run(format!("cannot start query threads: {error}")))?;
        Ok(Self {
            context: SessionContext::new_with_config_rt(config, environment),
            order,
            runtime: Some(runtime),
        })
    }

    /// Adds the table of an input port under the port's name.
    ///
    /// # Errors
    /// When the port is no table or its files cannot be read.
    pub fn register_port(&self, io: &dyn StageIo, port: &str) -> Result<(), OperatorError> {
        self.register_parquet(port, io.part_urls(port)?)?;
        Ok(())
    }

    /// Adds a table over Parquet files.
    ///
    /// # Errors
    /// When a file cannot be read or the schemas do not go together.
    pub fn register_parquet(&self, name: &str, urls: Vec<String>) -> Result<(), QueryError> {
        let context = self.context.clone();
        let keeps_order = self.order == Order::Repeatable;
        let table = self.wait(async move {
            PartsTable::open(&context, &urls, keeps_order)
                .await
                .map_err(|error| QueryError::run(&error))
        })?;
        if table.rows() > HASH_JOIN_ROWS {
            let state = self.context.state_ref();
            let mut state = state.write();
            let options = state.config_mut().options_mut();
            options.optimizer.prefer_hash_join = false;
        }
        self.register(name, Arc::new(table))
    }

    /// Adds a table without rows, to plan queries over it.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn register_empty(&self, name: &str, schema: &SchemaRef) -> Result<(), QueryError> {
        self.register_batches(name, schema, Vec::new())
    }

    /// Adds a table in memory.
    ///
    /// # Errors
    /// When the batches have another schema or the name is taken.
    pub fn register_batches(
        &self,
        name: &str,
        schema: &SchemaRef,
        batches: Vec<RecordBatch>,
    ) -> Result<(), QueryError> {
        let table = MemTable::try_new(Arc::clone(schema), vec![batches])
            .map_err(|error| QueryError::run(&error))?;
        self.register(name, Arc::new(table))
    }

    /// Adds a function.
    pub fn register_function(&self, function: ScalarUDF) {
        self.context.register_udf(function);
    }

    fn register(
        &self,
        name: &str,
        table: Arc<dyn datafusion::catalog::TableProvider>,
    ) -> Result<(), QueryError> {
        // Quoted, so that names keep their case and dashes.
        let name = datafusion::common::TableReference::bare(name);
        self.context
            .register_table(name, table)
            .map_err(|error| QueryError::query(&error))?;
        Ok(())
    }

    /// Takes a table away, if it is there.
    ///
    /// # Errors
    /// When the catalog refuses.
    pub fn deregister(&self, name: &str) -> Result<(), QueryError> {
        let name = datafusion::common::TableReference::bare(name);
        self.context
            .deregister_table(name)
            .map_err(|error| QueryError::query(&error))?;
        Ok(())
    }

    /// Adds what a query gives as a table.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn register_view(&self, name: &str, frame: DataFrame) -> Result<(), QueryError> {
        self.register(name, frame.into_view())
    }

    /// Columns of a table, as stored.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn schema(&self, table: &str) -> Result<SchemaRef, QueryError> {
        let frame = self.table(table)?;
        Ok(storage_schema(frame.schema().as_arrow()))
    }

    /// A table as the start of a query.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn table(&self, name: &str) -> Result<DataFrame, QueryError> {
        let context = self.context.clone();
        let name = datafusion::common::TableReference::bare(name.to_owned());
        self.wait(async move {
            context
                .table(name)
                .await
                .map_err(|error| QueryError::query(&error))
        })
    }

    /// Plans one SQL query; statements that would change anything are refused.
    ///
    /// # Errors
    /// When the text is no query over the tables.
    pub fn sql(&self, text: &str) -> Result<DataFrame, QueryError> {
        let context = self.context.clone();
        let text = text.to_owned();
        let options = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        self.wait(async move {
            context
                .sql_with_options(&text, options)
                .await
                .map_err(|error| QueryError::query(&error))
        })
    }

    /// All rows of a query.
    ///
    /// # Errors
    /// When it fails on the data.
    pub fn collect(&self, frame: DataFrame) -> Result<Vec<RecordBatch>, QueryError> {
        self.wait(async move {
            frame
                .collect()
                .await
                .map_err(|error| QueryError::run(&error))
        })
    }

    /// Writes all rows of a query to an output port, with exactly the columns of `schema`. Returns how many.
    ///
    /// # Errors
    /// When the query fails on the data, the store fails, or the run was asked to stop.
    pub fn write(
        &self,
        frame: DataFrame,
        schema: &SchemaRef,
        io: &mut dyn StageIo,
        port: &str,
    ) -> Result<u64, OperatorError> {
        self.write_and_show(frame, schema, io, port, |_| ())
    }

    /// As [`QuerySession::write`], and shows every batch, as it is written, to `look`.
    ///
    /// # Errors
    /// As [`QuerySession::write`].
    pub fn write_and_show(
        &self,
        frame: DataFrame,
        schema: &SchemaRef,
        io: &mut dyn StageIo,
        port: &str,
        mut look: impl FnMut(&RecordBatch),
    ) -> Result<u64, OperatorError> {
        let mut rows = 0;
        for batch in self.stream(frame) {
            if io.is_cancelled() {
                return Err(OperatorError::Interrupted);
            }
            let batch = conform(&batch?, schema)?;
            rows += batch.num_rows() as u64;
            if batch.num_rows() > 0 {
                look(&batch);
                io.write(port, batch)?;
            }
        }
        if rows == 0 {
            io.write(port, RecordBatch::new_empty(Arc::clone(schema)))?;
        }
        Ok(rows)
    }

    /// The rows of a query as they come. The query goes on beside the caller, a few batches ahead, and ends when the iterator
    /// is dropped. Two streams side by side need a session each: one that waits for its reader holds the session's thread.
    pub fn stream(
        &self,
        frame: DataFrame,
    ) -> impl Iterator<Item = Result<RecordBatch, QueryError>> + use<> {
        let (sender, receiver) = mpsc::sync_channel(BATCHES_IN_FLIGHT);
        self.runtime().spawn(async move {
            let mut stream = match frame.execute_stream().await {
                Ok(stream) => stream,
                Err(error) => {
                    // A receiver that is gone has an error of its own.
                    let _ = sender.send(Err(QueryError::run(&error)));
                    return;
                }
            };
            while let Some(batch) = stream.next().await {
                let batch = batch.map(Some).map_err(|error| QueryError::run(&error));
                if sender.send(batch).is_err() {
                    return;
                }
            }
            // Said aloud: a query that panics ends the channel too, and its rows so far are no result.
            let _ = sender.send(Ok(None));
        });
        let mut has_ended = false;
        std::iter::from_fn(move || {
            if has_ended {
                return None;
            }
            let batch = receiver.recv().unwrap_or_else(|_| Err(broken_down()));
            has_ended = !matches!(batch, Ok(Some(_)));
            batch.transpose()
        })
    }

    /// Runs a future on the session's threads and waits for it without needing or blocking another runtime.
    fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, QueryError>> + Send + 'static,
    ) -> Result<T, QueryError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.runtime().spawn(async move {
            let _ = sender.send(future.await);
        });
        receiver.recv().unwrap_or_else(|_| Err(broken_down()))
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("the runtime is there until the session is dropped")
    }
}

fn threads(order: Order) -> usize {
    match order {
        Order::Any => std::thread::available_parallelism().map_or(1, usize::from),
        Order::Repeatable => 1,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how much memory a query may use changes no result"
)]
fn memory_bytes(threads: usize) -> usize {
    let asked = std::env::var(MEMORY_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    asked.unwrap_or(MEMORY_MIB.max(threads * THREAD_MIB)) << 20
}

/// The error of a query that panicked.
fn broken_down() -> QueryError {
    QueryError::Run("the query engine broke down; its message is above".to_owned())
}

impl Drop for QuerySession {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests;
