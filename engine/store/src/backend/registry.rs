//! The stores that this process has open, by URL, so that a query engine reads parts through the same layers.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use object_store::ObjectStore;

/// An object of an open store.
#[derive(Clone, Debug)]
pub struct OpenObject {
    /// The store that holds it.
    pub objects: Arc<dyn ObjectStore>,
    /// URL of the store.
    pub store: String,
    /// Path of the object in the store.
    pub path: String,
}

/// One URL may be open several times.
type Stores = BTreeMap<String, Vec<Weak<dyn ObjectStore>>>;

fn stores() -> MutexGuard<'static, Stores> {
    static STORES: LazyLock<Mutex<Stores>> = LazyLock::new(Mutex::default);
    // Nothing panics while it holds the lock; a map of weak pointers would be whole anyway.
    STORES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds the open store that an object's URL points into; none for URLs of other things.
#[must_use]
pub fn objects_of(url: &str) -> Option<OpenObject> {
    let (base, query) = split(url);
    stores().iter().find_map(|(store, opened)| {
        let (store_base, store_query) = split(store);
        let path = base
            .strip_prefix(store_base.trim_end_matches('/'))?
            .strip_prefix('/')?;
        if query != store_query {
            return None;
        }
        Some(OpenObject {
            objects: opened.iter().find_map(Weak::upgrade)?,
            store: store.clone(),
            path: path.to_owned(),
        })
    })
}

/// URL of an object of the store with this URL.
pub(crate) fn object_url(store: &str, path: &str) -> String {
    let (base, query) = split(store);
    let base = base.trim_end_matches('/');
    match query {
        Some(query) => format!("{base}/{path}?{query}"),
        None => format!("{base}/{path}"),
    }
}

/// Remembers an open store for as long as somebody has it open.
pub(crate) fn register(url: &str, objects: &Arc<dyn ObjectStore>) {
    let mut stores = stores();
    stores.retain(|_, opened| {
        opened.retain(|objects| objects.strong_count() > 0);
        !opened.is_empty()
    });
    stores
        .entry(url.to_owned())
        .or_default()
        .push(Arc::downgrade(objects));
}

/// The store with this URL, if it is open.
pub(crate) fn find(url: &str) -> Option<Arc<dyn ObjectStore>> {
    stores().get(url)?.iter().find_map(Weak::upgrade)
}

/// Only a store that fails on purpose has settings behind a `?`.
fn split(url: &str) -> (&str, Option<&str>) {
    match url.split_once('?') {
        Some((base, query)) if url.starts_with("chaos+") => (base, Some(query)),
        _ => (url, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[test]
    fn an_object_is_found_by_its_url_while_its_store_is_open() {
        for text in ["memory://", "chaos+memory://?seed=1&rate=0"] {
            let store = Store::open(text).unwrap();
            store.create("v1/media/a", b"here".to_vec()).unwrap();
            let url = store.object_url("v1/media/a");
            let found = objects_of(&url).unwrap();
            assert_eq!(
                (found.store.as_str(), found.path.as_str()),
                (store.url(), "v1/media/a")
            );
            let same = Store::open(store.url()).unwrap();
            drop((store, found));
            assert_eq!(&same.get("v1/media/a").unwrap()[..], b"here");
            assert!(objects_of(&url).is_some());
            drop(same);
            assert!(objects_of(&url).is_none());
        }
    }

    #[test]
    fn a_folder_whose_name_begins_alike_is_another_store() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| Store::open(folder.path().join(name).to_str().unwrap()).unwrap();
        let (short, long) = (open("a"), open("a b"));
        let found = objects_of(&long.object_url("v1/media/a")).unwrap();
        assert_eq!(found.store, long.url());
        assert_ne!(short.url(), long.url());
    }
}
