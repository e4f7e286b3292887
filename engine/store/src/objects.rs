//! The store as a set of objects: opening by URL, create-only puts, gets, lists.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{TryStreamExt as _, stream};
use object_store::path::Path as ObjectPath;
use object_store::{
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions,
    PutPayload,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{self, registry, runtime};
use crate::{Result, StoreError};

/// Large objects travel in pieces of this size.
const PIECE_BYTES: usize = 16 << 20;
/// Pieces that are on their way at once, where there is a way.
const PIECES_AT_ONCE: usize = 4;
/// How often an upload in pieces is begun anew.
const UPLOAD_ATTEMPTS: usize = 20;
/// Objects that are asked for at once.
const LOOKS_AT_ONCE: usize = 32;

/// A store. Clones share it.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: String,
    /// Folder of a store on the local disk.
    root: Option<PathBuf>,
    /// Whether operations wait for sockets or timers.
    is_remote: bool,
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
    /// Opens the store at a folder or URL: `file://`, `s3://bucket/prefix`, `gs://`, `az://`, `memory://`, each also with
    /// `chaos+` in front and `?seed=3&rate=0.05` behind, for a store that fails on purpose. A folder is made when it does
    /// not exist. Credentials come from the environment.
    ///
    /// # Errors
    /// When the address is no folder or URL of a known kind, the folder cannot be made, or the service does not answer or
    /// refuses.
    pub fn open(location: &str) -> Result<Self> {
        let backend = backend::open(location)?;
        Ok(Self {
            objects: backend.objects,
            url: backend.url,
            root: backend.root,
            is_remote: backend.is_remote,
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
        registry::object_url(&self.url, path)
    }

    /// Whether another process can open the same store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.url.contains("memory://")
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        runtime::block_on(self.is_remote, future)
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
        match self.wait(put) {
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
        // What lies there was cut by a crash or by hand. Its name says what it must be, so that replacing it at one stroke
        // takes nothing from anyone.
        let location = object_path(path)?;
        let put = self
            .objects
            .put_opts(&location, bytes.into(), PutMode::Overwrite.into());
        self.wait(put).map_err(StoreError::object("write", path))?;
        Ok(())
    }

    /// Writes a large object that is named by its content, in pieces, unless it is there. Memory is bounded.
    pub(crate) fn create_from_file(&self, path: &str, file: &Path, bytes: u64) -> Result<()> {
        let location = object_path(path)?;
        let mut attempt = 0;
        loop {
            if self.size(path)? == Some(bytes) {
                return Ok(());
            }
            attempt += 1;
            let mut reader = std::fs::File::open(file).map_err(StoreError::file("read", file))?;
            match self.wait(self.upload(&location, &mut reader)) {
                Ok(sent) if sent == bytes => return Ok(()),
                Ok(_) => {
                    self.remove(path)?;
                    let path = file.to_owned();
                    return Err(StoreError::Changed { path });
                }
                Err(UploadError::File(error)) => {
                    return Err(StoreError::file("read", file)(error));
                }
                Err(UploadError::Store(error)) => {
                    if attempt == UPLOAD_ATTEMPTS || !backend::explain::is_transient(&error) {
                        return Err(StoreError::object("write", path)(error));
                    }
                }
            }
        }
    }

    async fn upload(
        &self,
        location: &ObjectPath,
        reader: &mut std::fs::File,
    ) -> std::result::Result<u64, UploadError> {
        let options = PutMultipartOptions::default();
        let mut upload = self.objects.put_multipart_opts(location, options).await?;
        match self.send_pieces(upload.as_mut(), reader).await {
            Ok(sent) => {
                upload.complete().await?;
                Ok(sent)
            }
            Err(error) => {
                // What was sent is of no use; a service that cannot even be told so removes it some day.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    async fn send_pieces(
        &self,
        upload: &mut dyn MultipartUpload,
        reader: &mut std::fs::File,
    ) -> std::result::Result<u64, UploadError> {
        let at_once = if self.is_remote { PIECES_AT_ONCE } else { 1 };
        let mut on_their_way = FuturesUnordered::new();
        let mut sent = 0;
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let mut next = std::io::Read::take(&mut *reader, PIECE_BYTES as u64);
            std::io::Read::read_to_end(&mut next, &mut piece).map_err(UploadError::File)?;
            if piece.is_empty() {
                break;
            }
            sent += piece.len() as u64;
            on_their_way.push(upload.put_part(PutPayload::from(piece)));
            while on_their_way.len() >= at_once {
                on_their_way.try_next().await?;
            }
        }
        while on_their_way.try_next().await?.is_some() {}
        Ok(sent)
    }

    /// Copies a large object into a file and gives its bytes to `see` on the way, in order. Memory is bounded.
    pub(crate) fn read_to_file(
        &self,
        path: &str,
        bytes: u64,
        file: &mut std::fs::File,
        mut see: impl FnMut(&[u8]),
    ) -> Result<()> {
        let location = object_path(path)?;
        let starts = (0..bytes).step_by(PIECE_BYTES);
        let pieces = stream::iter(starts.map(|start| {
            let end = bytes.min(start + PIECE_BYTES as u64);
            self.objects.get_range(&location, start..end)
        }))
        .buffered(if self.is_remote { PIECES_AT_ONCE } else { 1 });
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = self.wait(pieces.next()) {
            let piece = piece.map_err(StoreError::object("read", path))?;
            see(&piece);
            std::io::Write::write_all(file, &piece)
                .map_err(StoreError::file("write a copy of", path))?;
        }
        Ok(())
    }

    /// Bytes of an object.
    pub(crate) fn get(&self, path: &str) -> Result<Bytes> {
        let location = object_path(path)?;
        self.wait(async { self.objects.get(&location).await?.bytes().await })
            .map_err(StoreError::object("read", path))
    }

    /// Size of an object, if it exists.
    pub(crate) fn size(&self, path: &str) -> Result<Option<u64>> {
        match self.wait(self.objects.head(&object_path(path)?)) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::object("look for", path)(error)),
        }
    }

    /// Sizes of many objects, none for those that do not exist. Where the store is a network away, the looks overlap.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sizes(&self, paths: &[&str]) -> Result<Vec<Option<u64>>> {
        if !self.is_remote {
            return paths.iter().map(|path| self.size(path)).collect();
        }
        let look = |path: &str| {
            let location = object_path(path);
            let path = path.to_owned();
            async move {
                match self.objects.head(&location?).await {
                    Ok(meta) => Ok(Some(meta.size)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(error) => Err(StoreError::object("look for", &path)(error)),
                }
            }
        };
        let looks = stream::iter(paths.iter().map(|path| look(path))).buffered(LOOKS_AT_ONCE);
        self.wait(looks.try_collect())
    }

    /// Removes an object, if it exists.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        match self.wait(self.objects.delete(&object_path(path)?)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::object("remove", path)(error)),
        }
    }

    /// Objects under a prefix.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let location = object_path(prefix)?;
        self.wait(self.objects.list(Some(&location)).try_collect())
            .map_err(StoreError::object("list", prefix))
    }

    /// Names of the folders directly under a prefix, sorted.
    pub(crate) fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let location = object_path(prefix)?;
        let listing = self
            .wait(self.objects.list_with_delimiter(Some(&location)))
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

/// Why an upload stopped.
enum UploadError {
    /// The file cannot be read.
    File(std::io::Error),
    /// The store failed.
    Store(object_store::Error),
}

impl From<object_store::Error> for UploadError {
    fn from(error: object_store::Error) -> Self {
        Self::Store(error)
    }
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
