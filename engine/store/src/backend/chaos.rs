//! A store that fails on purpose, for rehearsals: `chaos+file:///folder?seed=3&rate=0.05` (also `chaos+memory://` and the
//! schemes of clouds).
//!
//! Of all operations the share `rate` goes wrong, chosen by seed and number of the operation: it fails before or after it
//! took effect, comes late, reads give fewer bytes than there are, lists are out of date (what was written in the last
//! second is missing, or what was removed is still there), and a put that fails may leave the first half of the object
//! behind, as a crash does on a local disk.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result, UploadPart,
};

use super::location::ChaosSettings;
use super::runtime;

/// How long a list may be out of date.
const STALE: TimeDelta = TimeDelta::seconds(1);

/// What goes wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It fails and nothing happened.
    Before,
    /// It fails although it took effect.
    After,
    /// It takes effect in part.
    Cut,
    /// It works, late.
    Late,
}

/// An object store that fails by seed.
#[derive(Clone, Debug)]
pub(crate) struct Chaos {
    inner: Arc<dyn ObjectStore>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    settings: ChaosSettings,
    /// Whether a put that fails can leave half an object behind.
    is_cut_by_crashes: bool,
    operations: AtomicU64,
    /// What was removed, and when.
    removed: Mutex<Vec<(DateTime<Utc>, ObjectMeta)>>,
}

impl Chaos {
    pub(crate) fn new(
        inner: Arc<dyn ObjectStore>,
        settings: ChaosSettings,
        is_cut_by_crashes: bool,
    ) -> Self {
        let state = State {
            settings,
            is_cut_by_crashes,
            operations: AtomicU64::new(0),
            removed: Mutex::default(),
        };
        Self {
            inner,
            state: Arc::new(state),
        }
    }
}

impl State {
    /// Decides over the next operation.
    fn next(&self, kinds: &[Fault]) -> Option<Fault> {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        let draw = xxhash_rust::xxh3::xxh3_64_with_seed(&number.to_le_bytes(), self.settings.seed);
        let share = (draw >> 32) as f64 / f64::from(u32::MAX);
        (share < self.settings.rate).then(|| kinds[(draw as u32) as usize % kinds.len()])
    }

    /// Waits if the operation is to come late; says whether it is to fail, and how.
    async fn fault(&self, kinds: &[Fault]) -> Option<Fault> {
        match self.next(kinds) {
            Some(Fault::Late) => {
                runtime::sleep(Duration::from_millis(3)).await;
                None
            }
            other => other,
        }
    }

    /// What a list that is out of date says.
    fn stale(&self, prefix: Option<&Path>, objects: Vec<ObjectMeta>) -> Vec<ObjectMeta> {
        let oldest = now() - STALE;
        let mut stale: Vec<ObjectMeta> = objects
            .into_iter()
            .filter(|object| object.last_modified < oldest)
            .collect();
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let still_there = removed.iter().filter(|(when, object)| {
            *when >= oldest && prefix.is_none_or(|prefix| object.location.prefix_matches(prefix))
        });
        stale.extend(still_there.map(|(_, object)| object.clone()));
        stale
    }

    fn remember_removed(&self, object: ObjectMeta) {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        removed.retain(|(when, _)| *when >= now - STALE);
        removed.push((now, object));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a list that is out of date is so by the clock"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}

fn failure(operation: &str, location: impl fmt::Display) -> Error {
    Error::Generic {
        store: "chaos",
        source: format!("{operation} of `{location}` failed on purpose").into(),
    }
}

/// The first half of a payload.
fn half(payload: &PutPayload) -> PutPayload {
    let bytes: Vec<u8> = payload.iter().flatten().copied().collect();
    bytes[..bytes.len() / 2].to_vec().into()
}

impl fmt::Display for Chaos {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "chaos over {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Chaos {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        use Fault::{After, Before, Cut, Late};
        let kinds: &[Fault] = if self.state.is_cut_by_crashes && options.mode == PutMode::Create {
            &[Before, After, Cut, Late]
        } else {
            &[Before, After, Late]
        };
        match self.state.fault(kinds).await {
            None | Some(Late) => self.inner.put_opts(location, payload, options).await,
            Some(Before) => Err(failure("a put", location)),
            Some(After) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(failure("the answer to a put", location))
            }
            Some(Cut) => {
                self.inner
                    .put_opts(location, half(&payload), options)
                    .await?;
                Err(failure("half of a put", location))
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if self
            .state
            .fault(&[Fault::Before, Fault::Late])
            .await
            .is_some()
        {
            return Err(failure("the start of an upload", location));
        }
        Ok(Box::new(ChaosUpload {
            upload: self.inner.put_multipart_opts(location, options).await?,
            chaos: self.clone(),
            location: location.clone(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let kinds: &[Fault] = if options.head {
            &[Fault::Before, Fault::Late]
        } else {
            &[Fault::Before, Fault::Cut, Fault::Late]
        };
        let fault = self.state.fault(kinds).await;
        if fault == Some(Fault::Before) {
            return Err(failure("a read", location));
        }
        let result = self.inner.get_opts(location, options).await?;
        if fault != Some(Fault::Cut) {
            return Ok(result);
        }
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let attributes = result.attributes.clone();
        let bytes = result.bytes().await?;
        let bytes = bytes.slice(..bytes.len() / 2);
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed()),
            meta,
            range,
            attributes,
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .then(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    let kinds = [Fault::Before, Fault::After, Fault::Late];
                    let fault = this.state.fault(&kinds).await;
                    if fault == Some(Fault::Before) {
                        return Err(failure("a removal", location));
                    }
                    if let Ok(object) = this.inner.head(&location).await {
                        this.state.remember_removed(object);
                    }
                    this.inner.delete(&location).await?;
                    match fault {
                        None => Ok(location),
                        Some(_) => Err(failure("the answer to a removal", location)),
                    }
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let kinds = [Fault::Before, Fault::After, Fault::Cut, Fault::Late];
            let fault = this.state.fault(&kinds).await;
            let place = prefix.clone().unwrap_or_default();
            if fault == Some(Fault::Before) {
                return Err(failure("a list", place));
            }
            let objects: Vec<ObjectMeta> = this.inner.list(prefix.as_ref()).try_collect().await?;
            let listed: Vec<Result<ObjectMeta>> = match fault {
                // Fails midway.
                Some(Fault::After) => objects[..objects.len() / 2]
                    .iter()
                    .cloned()
                    .map(Ok)
                    .chain([Err(failure("the rest of a list", place))])
                    .collect(),
                Some(_) => {
                    let stale = this.state.stale(prefix.as_ref(), objects);
                    stale.into_iter().map(Ok).collect()
                }
                None => objects.into_iter().map(Ok).collect(),
            };
            Ok(stream::iter(listed))
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let kinds = [Fault::Before, Fault::Cut, Fault::Late];
        let fault = self.state.fault(&kinds).await;
        if fault == Some(Fault::Before) {
            return Err(failure("a list", prefix.cloned().unwrap_or_default()));
        }
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        if fault.is_some() {
            let oldest = now() - STALE;
            listed
                .objects
                .retain(|object| object.last_modified < oldest);
        }
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload in pieces that may fail at its end.
#[derive(Debug)]
struct ChaosUpload {
    upload: Box<dyn MultipartUpload>,
    chaos: Chaos,
    location: Path,
}

#[async_trait]
impl MultipartUpload for ChaosUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        self.upload.put_part(payload)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        use Fault::{After, Before, Cut, Late};
        let state = &self.chaos.state;
        match state.fault(&[Before, After, Cut, Late]).await {
            None | Some(Late) => self.upload.complete().await,
            Some(Before) => Err(failure("the end of an upload", &self.location)),
            Some(After) => {
                self.upload.complete().await?;
                Err(failure("the answer to an upload", &self.location))
            }
            Some(Cut) => {
                if state.is_cut_by_crashes {
                    let beginning = PutPayload::from_static(b"the beginning of");
                    let inner = &self.chaos.inner;
                    // Where the whole object is already, it stays.
                    let _ = inner
                        .put_opts(&self.location, beginning, PutMode::Create.into())
                        .await;
                }
                Err(failure("the middle of an upload", &self.location))
            }
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

#[cfg(test)]
#[path = "chaos_tests.rs"]
mod tests;
