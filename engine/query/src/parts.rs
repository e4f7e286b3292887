//! A table over Parquet parts in a given order, which DataFusion's own listing table does not keep.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingTableUrl, PartitionedFile};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Expr;
use datafusion::object_store::path::Path;
use datafusion::object_store::{ObjectMeta, ObjectStoreExt as _};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::{StreamExt as _, TryStreamExt as _, stream};

/// Files that are looked up at once.
const LOOKS_AT_ONCE: usize = 32;

/// Parquet files that together are one table, all in one object store.
#[derive(Debug)]
pub(crate) struct PartsTable {
    schema: SchemaRef,
    store: ObjectStoreUrl,
    files: Vec<PartitionedFile>,
    keeps_order: bool,
    rows: usize,
}

impl PartsTable {
    /// Looks up the files and reads their schemas. `keeps_order` makes a scan give the rows in the order of the files.
    pub(crate) async fn open(
        context: &SessionContext,
        urls: &[String],
        keeps_order: bool,
    ) -> Result<Self> {
        let mut store_url = ObjectStoreUrl::local_filesystem();
        let mut paths = Vec::with_capacity(urls.len());
        for url in urls {
            let path;
            (store_url, path) = find(context, url)?;
            paths.push(path);
        }
        let store = context.runtime_env().object_store(&store_url)?;
        let looks = paths.into_iter().map(|path| {
            let store = Arc::clone(&store);
            async move { store.head(&path).await }
        });
        let objects: Vec<ObjectMeta> = stream::iter(looks)
            .buffered(LOOKS_AT_ONCE)
            .try_collect()
            .await?;
        let format = ParquetFormat::default().with_force_view_types(false);
        let state = context.state();
        let schema = format.infer_schema(&state, &store, &objects).await?;
        // The footers are in memory now.
        let mut rows = 0;
        for object in &objects {
            let statistics = format.infer_stats(&state, &store, Arc::clone(&schema), object);
            rows += statistics.await?.num_rows.get_value().unwrap_or(&0);
        }
        let files = objects
            .into_iter()
            .map(PartitionedFile::new_from_meta)
            .collect();
        Ok(Self {
            schema,
            store: store_url,
            files,
            keeps_order,
            rows,
        })
    }

    /// Rows in all files.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
}

/// The store and the path of a file. Files of a store that this process has open are read through it, whatever its kind;
/// other files lie on the local disk.
fn find(context: &SessionContext, url: &str) -> Result<(ObjectStoreUrl, Path)> {
    // What is on the local disk is read from there, without another layer.
    if !url.starts_with("file://")
        && let Some(found) = engine_store::objects_of(url)
    {
        // The name of a store may hold what no host does, so that it stands here by its digest.
        let name = engine_core::Digest::of(found.store.as_bytes());
        let store = ObjectStoreUrl::parse(format!("store://{}", name.short()))?;
        context.register_object_store(store.as_ref(), found.objects);
        return Ok((store, Path::parse(found.path)?));
    }
    let url = ListingTableUrl::parse(url)?;
    Ok((url.object_store(), url.prefix().clone()))
}

#[async_trait]
impl TableProvider for PartsTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let num_groups = if self.keeps_order {
            1
        } else {
            state
                .config()
                .target_partitions()
                .clamp(1, self.files.len().max(1))
        };
        let mut groups: Vec<Vec<PartitionedFile>> = vec![Vec::new(); num_groups];
        for (index, file) in self.files.iter().enumerate() {
            groups[index * num_groups / self.files.len()].push(file.clone());
        }
        let groups = groups.into_iter().map(FileGroup::new).collect();
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_table_parquet_options(state.table_options().parquet.clone());
        let scan = FileScanConfigBuilder::new(self.store.clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .with_preserve_order(self.keeps_order)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}
