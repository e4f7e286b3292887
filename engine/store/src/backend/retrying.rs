//! Tries again what failed for a passing reason, so that nothing above has to.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};

use super::explain::{brief, is_transient};
use super::runtime;

/// Objects up to this size are compared byte by byte with what was to be written; larger ones, which are named by their
/// content, by size.
const COMPARED_BYTES: u64 = 8 << 20;
/// Objects that are removed side by side.
const REMOVALS_AT_ONCE: usize = 16;

/// How patient a store is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Delays between attempts.
    pub(crate) delays: ExponentialBuilder,
    /// After this time no further attempt is begun.
    pub(crate) total: Duration,
}

impl Patience {
    /// For a service on the network: rides out an outage of about a minute. The client below tries each request a few times
    /// by itself, so that few errors come this far.
    pub(crate) const NETWORK: Self = Self {
        delays: ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(250))
            .with_max_delay(Duration::from_secs(15))
            .with_max_times(8)
            .with_jitter(),
        total: Duration::from_mins(2),
    };
    /// For a rehearsal on one machine, where waiting teaches nothing.
    pub(crate) const REHEARSAL: Self = Self {
        delays: ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(1))
            .with_max_delay(Duration::from_millis(20))
            .with_max_times(30)
            .with_jitter(),
        total: Duration::from_mins(2),
    };
}

/// An object store whose operations are tried again after a passing fault.
#[derive(Clone, Debug)]
pub(crate) struct Retrying {
    inner: Arc<dyn ObjectStore>,
    patience: Patience,
}

/// The attempts at one operation.
struct Attempts {
    delays: <ExponentialBuilder as backon::BackoffBuilder>::Backoff,
    deadline: Instant,
}

/// What lies where an object was to be written.
enum Standing {
    /// The object.
    Ours,
    /// The beginning of the object: what an attempt left behind that was cut off.
    Cut,
    /// Another object.
    Other,
    Nothing,
}

impl Attempts {
    /// Waits for the next attempt; gives the error back when there is to be none.
    async fn again(&mut self, error: Error) -> Result<()> {
        if !is_transient(&error) || Instant::now() >= self.deadline {
            return Err(error);
        }
        let Some(delay) = self.delays.next() else {
            return Err(error);
        };
        tracing::debug!(
            error = brief(&error),
            ?delay,
            "the store failed; trying again"
        );
        runtime::sleep(delay).await;
        Ok(())
    }
}

impl Retrying {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, patience: Patience) -> Self {
        Self { inner, patience }
    }

    fn attempts(&self) -> Attempts {
        Attempts {
            delays: self.patience.delays.build(),
            deadline: Instant::now() + self.patience.total,
        }
    }

    async fn attempt<T, F>(&self, operation: impl Fn() -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        let mut attempts = self.attempts();
        loop {
            match operation().await {
                Ok(value) => return Ok(value),
                Err(error) => attempts.again(error).await?,
            }
        }
    }

    async fn standing(&self, location: &Path, payload: &PutPayload) -> Result<Standing> {
        let wanted = payload.content_length() as u64;
        let size = match self.head(location).await {
            Ok(meta) => meta.size,
            Err(Error::NotFound { .. }) => return Ok(Standing::Nothing),
            Err(error) => return Err(error),
        };
        if size > wanted {
            return Ok(Standing::Other);
        }
        if wanted <= COMPARED_BYTES {
            let found = match self.get(location).await {
                Ok(found) => found.bytes().await?,
                Err(Error::NotFound { .. }) => return Ok(Standing::Nothing),
                Err(error) => return Err(error),
            };
            if !starts_with(payload, &found) {
                return Ok(Standing::Other);
            }
        }
        Ok(if size == wanted {
            Standing::Ours
        } else {
            Standing::Cut
        })
    }
}

/// Whether some bytes are the first ones of a payload.
fn starts_with(payload: &PutPayload, mut bytes: &[u8]) -> bool {
    for piece in payload {
        let length = piece.len().min(bytes.len());
        if piece[..length] != bytes[..length] {
            return false;
        }
        bytes = &bytes[length..];
    }
    bytes.is_empty()
}

impl fmt::Display for Retrying {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Retrying {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let mut attempts = self.attempts();
        let mut options = options;
        let mut has_failed = false;
        loop {
            let put = self
                .inner
                .put_opts(location, payload.clone(), options.clone());
            match put.await {
                Err(Error::AlreadyExists { path, source }) if has_failed => {
                    // It may be what an attempt wrote whose answer was lost.
                    match self.standing(location, &payload).await? {
                        Standing::Ours => {
                            return Ok(PutResult {
                                e_tag: None,
                                version: None,
                            });
                        }
                        // Replaced at one stroke by the whole, so that nobody finds nothing there.
                        Standing::Cut => options.mode = PutMode::Overwrite,
                        Standing::Other => return Err(Error::AlreadyExists { path, source }),
                        Standing::Nothing => {}
                    }
                }
                Err(error) => {
                    attempts.again(error).await?;
                    has_failed = true;
                }
                Ok(result) => return Ok(result),
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        // A piece that failed has no number by which it could be sent again: whoever uploads begins anew.
        self.attempt(|| self.inner.put_multipart_opts(location, options.clone()))
            .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.attempt(|| async {
            let mut result = self.inner.get_opts(location, options.clone()).await?;
            // A store below a prefix answers with the whole path, under which nobody here finds the object.
            result.meta.location = location.clone();
            if options.head {
                return Ok(result);
            }
            let (meta, range) = (result.meta.clone(), result.range.clone());
            let attributes = result.attributes.clone();
            let bytes = result.bytes().await?;
            check_length(location, &range, bytes.len())?;
            Ok(GetResult {
                payload: GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed()),
                meta,
                range,
                attributes,
            })
        })
        .await
    }

    // `get_ranges` is the trait's own, over `get_opts` above: the one of a store below cuts the ranges out of answers before
    // their length is checked, and panics where one is too short.

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .map(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    let removed = this.attempt(|| this.inner.delete(&location)).await;
                    match removed {
                        Ok(()) | Err(Error::NotFound { .. }) => Ok(location),
                        Err(error) => Err(error),
                    }
                }
            })
            .buffered(REMOVALS_AT_ONCE)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            this.attempt(|| this.inner.list(prefix.as_ref()).try_collect::<Vec<_>>())
                .await
        };
        stream::once(listed)
            .map_ok(|objects| stream::iter(objects.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.attempt(|| self.inner.list_with_delimiter(prefix))
            .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.attempt(|| self.inner.copy_opts(from, to, options.clone()))
            .await
    }
}

fn check_length(location: &Path, range: &Range<u64>, found: usize) -> Result<()> {
    let wanted = range.end - range.start;
    if found as u64 == wanted {
        return Ok(());
    }
    Err(Error::Generic {
        store: "store",
        source: format!("the answer for `{location}` ended after {found} of {wanted} bytes").into(),
    })
}

#[cfg(test)]
#[path = "retrying_tests.rs"]
mod tests;
