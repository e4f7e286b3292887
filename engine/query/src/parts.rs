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
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;

/// Parquet files that together are one table, all in one object store.
#[derive(Debug)]
pub(crate) struct PartsTable {
    schema: SchemaRef,
    store: ObjectStoreUrl,
    files: Vec<PartitionedFile>,
    keeps_order: bool,
}

impl PartsTable {
    /// Looks up the files and reads their schemas. `keeps_order` makes a scan give the rows in the order of the files.
    pub(crate) async fn open(
        context: &SessionContext,
        urls: &[String],
        keeps_order: bool,
    ) -> Result<Self> {
        let mut store_url = ObjectStoreUrl::local_filesystem();
        let mut objects = Vec::with_capacity(urls.len());
        for url in urls {
            let url = ListingTableUrl::parse(url)?;
            store_url = url.object_store();
            let store = context.runtime_env().object_store(&store_url)?;
            objects.push(
                datafusion::object_store::ObjectStoreExt::head(store.as_ref(), url.prefix())
                    .await?,
            );
        }
        let store = context.runtime_env().object_store(&store_url)?;
        let format = ParquetFormat::default().with_force_view_types(false);
        let schema = format
            .infer_schema(&context.state(), &store, &objects)
            .await?;
        let files = objects
            .into_iter()
            .map(PartitionedFile::new_from_meta)
            .collect();
        Ok(Self {
            schema,
            store: store_url,
            files,
            keeps_order,
        })
    }
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
