//! Where the objects lie: folders, memory and clouds behind one trait, with retries where an answer may fail to come.

mod chaos;
mod cloud;
pub(crate) mod explain;
mod location;
pub(crate) mod registry;
mod retrying;
pub(crate) mod runtime;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use url::Url;

use self::chaos::Chaos;
use self::location::{Location, Place};
use self::retrying::{Patience, Retrying};
use crate::{Result, StoreError};

/// An open place.
pub(crate) struct Backend {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// Address by which it is opened again.
    pub(crate) url: String,
    /// Folder whose files are the objects.
    pub(crate) root: Option<PathBuf>,
    /// Whether operations wait for sockets or timers, so that several at once are faster than one after the other.
    pub(crate) is_remote: bool,
}

/// Opens a folder or URL. A cloud is asked whether it is there.
pub(crate) fn open(text: &str) -> Result<Backend> {
    let location = Location::parse(text)?;
    let backend = match &location.place {
        Place::Folder(folder) => open_folder(folder)?,
        Place::Memory(name) => open_memory(name),
        Place::Cloud {
            cloud,
            bucket_url,
            bucket,
            prefix,
        } => {
            let url = format!("{bucket_url}/{prefix}")
                .trim_end_matches('/')
                .to_owned();
            let objects = cloud::open(*cloud, &url, bucket_url, bucket, prefix)?;
            Backend {
                objects,
                url,
                root: None,
                is_remote: true,
            }
        }
    };
    let is_network = backend.is_remote;
    let backend = match location.chaos {
        None if is_network => retrying(backend, Patience::NETWORK),
        None => backend,
        Some(settings) => {
            let url = format!("chaos+{}?{settings}", backend.url);
            // A cloud puts an object whole or not at all.
            let chaos = Chaos::new(backend.objects, settings, !is_network);
            let unreliable = Backend {
                objects: Arc::new(chaos),
                url,
                // Files that are read past this layer would not fail.
                root: None,
                is_remote: true,
            };
            retrying(unreliable, Patience::REHEARSAL)
        }
    };
    registry::register(&backend.url, &backend.objects);
    Ok(backend)
}

fn retrying(backend: Backend, patience: Patience) -> Backend {
    Backend {
        objects: Arc::new(Retrying::new(backend.objects, patience)),
        ..backend
    }
}

fn open_memory(name: &str) -> Backend {
    let url = format!("memory://{name}");
    let objects = registry::find(&url).unwrap_or_else(|| {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        // Found again when it is opened as a store that fails, too.
        registry::register(&url, &objects);
        objects
    });
    Backend {
        objects,
        url,
        root: None,
        is_remote: false,
    }
}

fn open_folder(folder: &Path) -> Result<Backend> {
    let absolute =
        std::path::absolute(folder).map_err(StoreError::file("find the folder", folder))?;
    std::fs::create_dir_all(&absolute)
        .map_err(StoreError::file("make the store's folder", &absolute))?;
    let root = absolute
        .canonicalize()
        .map_err(StoreError::file("open the store's folder", &absolute))?;
    let url = Url::from_directory_path(&root).map_err(|()| StoreError::Url {
        url: root.display().to_string(),
        message: "is no absolute path".to_owned(),
    })?;
    let objects =
        LocalFileSystem::new_with_prefix(&root).map_err(StoreError::object("open", "."))?;
    Ok(Backend {
        objects: Arc::new(objects),
        url: url.to_string(),
        root: Some(root),
        is_remote: false,
    })
}
