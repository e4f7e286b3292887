//! The store as a set of objects: opening by URL, create-only puts, gets, lists.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::{Result, StoreError};

/// A store. Clones share it.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: String,
    /// Folder of a store on the local disk.
    root: Option<PathBuf>,
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Store")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at a folder or URL (`file://`, `memory://`); a folder is made when it does not exist.
    ///
    /// # Errors
    /// When the address is no folder or URL that this build knows, or the folder cannot be made.
    pub fn open(location: &str) -> Result<Self> {
        let Some((scheme, _)) = location.split_once("://") else {
            return Self::open_folder(Path::new(location));
        };
        let bad = |message: String| StoreError::Url {
            url: location.to_owned(),
            message,
        };
        let url = Url::parse(location).map_err(|error| bad(error.to_string()))?;
        // The one place that knows the kinds of store.
        match scheme {
            "file" => {
                let folder = url
                    .to_file_path()
                    .map_err(|()| bad("is no absolute path".to_owned()))?;
                Self::open_folder(&folder)
            }
            "memory" => Ok(Self {
                objects: Arc::new(InMemory::new()),
                url: location.to_owned(),
                root: None,
            }),
            "s3" | "gs" | "az" | "abfs" | "abfss" => Err(bad(format!(
                "this build has no `{scheme}` backend; use a folder on the local disk or a mounted file system"
            ))),
            _ => Err(bad(format!(
                "unknown kind of store `{scheme}`; use a folder, file:// or memory://"
            ))),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self> {
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
        Ok(Self {
            objects: Arc::new(objects),
            url: url.to_string(),
            root: Some(root),
        })
    }

    /// Address by which another process opens the same store.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Folder of a store on the local disk.
    #[must_use]
    pub fn local_root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The object store underneath, for engines that read parts by themselves.
    #[must_use]
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.objects)
    }

    /// URL of an object.
    #[must_use]
    pub fn object_url(&self, path: &str) -> String {
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }

    /// Whether another process can open the same store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.url.starts_with("memory://")
    }

    /// Local path of an object, for a store on the local disk.
    pub(crate) fn local_path(&self, path: &str) -> Option<PathBuf> {
        self.root.as_ref().map(|root| root.join(path))
    }

    /// Writes an object unless there is one; says whether it was written.
    pub(crate) fn create(&self, path: &str, bytes: impl Into<PutPayload>) -> Result<bool> {
        let location = object_path(path)?;
        let put = self
            .objects
            .put_opts(&location, bytes.into(), PutMode::Create.into());
        match block_on(put) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(StoreError::object("write", path)(error)),
        }
    }

    /// Writes an object that is named by its content, unless it is there in full.
    pub(crate) fn create_content(&self, path: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let bytes: Bytes = bytes.into();
        if self.create(path, bytes.clone())? || self.size(path)? == Some(bytes.len() as u64) {
            return Ok(());
        }
        // What lies there was cut by a fault of the disk or by hand. Its name says what it must be.
        self.remove(path)?;
        self.create(path, bytes).map(|_| ())
    }

    /// Writes a large object that is named by its content, in pieces, unless it is there.
    pub(crate) fn create_from_file(&self, path: &str, file: &Path, bytes: u64) -> Result<()> {
        const PIECE: usize = 16 << 20;
        if self.size(path)? == Some(bytes) {
            return Ok(());
        }
        let failed = || StoreError::file("read", file);
        let mut reader = std::fs::File::open(file).map_err(failed())?;
        let location = object_path(path)?;
        let mut upload = block_on(
            self.objects
                .put_multipart_opts(&location, object_store::PutMultipartOptions::default()),
        )
        .map_err(StoreError::object("write", path))?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            std::io::Read::read_to_end(
                &mut std::io::Read::take(&mut reader, PIECE as u64),
                &mut piece,
            )
            .map_err(failed())?;
            if piece.is_empty() {
                break;
            }
            block_on(upload.put_part(PutPayload::from(piece)))
                .map_err(StoreError::object("write", path))?;
        }
        block_on(upload.complete()).map_err(StoreError::object("write", path))?;
        Ok(())
    }

    /// Bytes of an object.
    pub(crate) fn get(&self, path: &str) -> Result<Bytes> {
        let location = object_path(path)?;
        block_on(async { self.objects.get(&location).await?.bytes().await })
            .map_err(StoreError::object("read", path))
    }

    /// Size of an object, if it exists.
    pub(crate) fn size(&self, path: &str) -> Result<Option<u64>> {
        match block_on(self.objects.head(&object_path(path)?)) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::object("look for", path)(error)),
        }
    }

    /// Removes an object, if it exists.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        match block_on(self.objects.delete(&object_path(path)?)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::object("remove", path)(error)),
        }
    }

    /// Objects under a prefix.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let location = object_path(prefix)?;
        block_on(self.objects.list(Some(&location)).try_collect())
            .map_err(StoreError::object("list", prefix))
    }

    /// Names of the folders directly under a prefix, sorted.
    pub(crate) fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let location = object_path(prefix)?;
        let listing = block_on(self.objects.list_with_delimiter(Some(&location)))
            .map_err(StoreError::object("list", prefix))?;
        let mut names: Vec<String> = listing
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    pub(crate) fn create_json(&self, path: &str, value: &impl Serialize) -> Result<bool> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|error| StoreError::Rows(format!("cannot write `{path}` as JSON: {error}")))?;
        text.push(b'\n');
        self.create(path, text)
    }

    pub(crate) fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let bytes = self.get(path)?;
        serde_json::from_slice(&bytes).map_err(|error| StoreError::Corrupt {
            path: path.to_owned(),
            message: error.to_string(),
        })
    }
}

/// Waits for an operation of the object store. Local and in-memory stores complete on the calling thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

fn object_path(path: &str) -> Result<ObjectPath> {
    ObjectPath::parse(path).map_err(|error| StoreError::Corrupt {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_kinds_of_store_are_refused_with_their_name() {
        let message = Store::open("s3://bucket/prefix").unwrap_err().to_string();
        assert!(
            message.contains("s3://bucket/prefix") && message.contains("no `s3` backend"),
            "{message}"
        );
        assert!(
            Store::open("ftp://host")
                .unwrap_err()
                .to_string()
                .contains("unknown kind of store `ftp`")
        );
    }

    #[test]
    fn a_put_never_replaces_an_object() {
        let folder = tempfile::tempdir().unwrap();
        for store in [
            Store::open("memory://").unwrap(),
            Store::open(folder.path().to_str().unwrap()).unwrap(),
        ] {
            assert!(
                store
                    .create("v1/media/a", "first".as_bytes().to_vec())
                    .unwrap()
            );
            assert!(
                !store
                    .create("v1/media/a", "second".as_bytes().to_vec())
                    .unwrap()
            );
            assert_eq!(&store.get("v1/media/a").unwrap()[..], b"first");
            assert!(matches!(
                store.get("v1/media/b"),
                Err(StoreError::NotFound { .. })
            ));
        }
    }

    #[test]
    fn a_folder_opens_again_by_its_url() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("with space");
        let store = Store::open(path.to_str().unwrap()).unwrap();
        store
            .create("v1/media/a", "here".as_bytes().to_vec())
            .unwrap();
        assert_eq!(
            &Store::open(store.url()).unwrap().get("v1/media/a").unwrap()[..],
            b"here"
        );
    }
}
