//! Operations over a store that fails by a script.

use std::collections::VecDeque;
use std::sync::Mutex;

use object_store::memory::InMemory;

use super::*;

/// What the next operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Fail,
    FailAfter,
    LeaveHalf,
    Answer(u16),
    Truncate,
}

/// A store in memory whose operations go wrong as listed, and then no more.
#[derive(Debug)]
struct Scripted {
    inner: InMemory,
    steps: Mutex<VecDeque<Step>>,
    operations: Mutex<usize>,
}

impl Scripted {
    fn next(&self) -> Option<Step> {
        *self.operations.lock().unwrap() += 1;
        self.steps.lock().unwrap().pop_front()
    }
}

fn failure(text: &str) -> Error {
    Error::Generic {
        store: "script",
        source: text.into(),
    }
}

fn answered(step: Option<Step>) -> Result<Option<Step>> {
    match step {
        Some(Step::Fail) => Err(failure("connection reset")),
        Some(Step::Answer(status)) => Err(failure(&format!(
            "Server returned non-2xx status code: {status} Words: "
        ))),
        other => Ok(other),
    }
}

impl fmt::Display for Scripted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("script")
    }
}

#[async_trait]
impl ObjectStore for Scripted {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match answered(self.next())? {
            Some(Step::FailAfter) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(failure("no answer"))
            }
            Some(Step::LeaveHalf) => {
                let bytes: Vec<u8> = payload.iter().flatten().copied().collect();
                let half = bytes[..bytes.len() / 2].to_vec();
                self.inner.put_opts(location, half.into(), options).await?;
                Err(failure("crash"))
            }
            _ => self.inner.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let step = answered(self.next())?;
        let result = self.inner.get_opts(location, options).await?;
        if step != Some(Step::Truncate) {
            return Ok(result);
        }
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let attributes = result.attributes.clone();
        let bytes = result.bytes().await?;
        let bytes = bytes.slice(..bytes.len() - 1);
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
        match answered(self.next()) {
            Ok(_) => self.inner.delete_stream(locations),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match answered(self.next()) {
            Ok(_) => self.inner.list(prefix),
            // Fails after the first objects.
            Err(error) => self
                .inner
                .list(prefix)
                .take(1)
                .chain(stream::once(async { Err(error) }))
                .boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        answered(self.next())?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn store(steps: &[Step]) -> (Arc<Scripted>, Retrying) {
    let script = Arc::new(Scripted {
        inner: InMemory::new(),
        steps: Mutex::new(steps.iter().copied().collect()),
        operations: Mutex::new(0),
    });
    let store = Retrying::new(
        Arc::clone(&script) as Arc<dyn ObjectStore>,
        Patience::REHEARSAL,
    );
    (script, store)
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    runtime::block_on(true, future)
}

fn create(store: &Retrying, path: &str, content: &str) -> Result<PutResult> {
    let payload = PutPayload::from(content.as_bytes().to_vec());
    wait(store.put_opts(&Path::from(path), payload, PutMode::Create.into()))
}

fn read(store: &Retrying, path: &str) -> String {
    let bytes = wait(async { store.get(&Path::from(path)).await.unwrap().bytes().await }).unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_put_whose_answer_was_lost_is_a_success() {
    let (_, store) = store(&[Step::FailAfter, Step::FailAfter]);
    create(&store, "a", "ours").unwrap();
    assert_eq!(read(&store, "a"), "ours");
}

#[test]
fn a_put_that_another_one_won_is_none() {
    let (script, store) = store(&[]);
    create(&store, "a", "theirs").unwrap();
    script.steps.lock().unwrap().push_back(Step::Fail);
    let error = create(&store, "a", "ours").unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!(read(&store, "a"), "theirs");
}

#[test]
fn half_an_object_that_an_attempt_left_is_made_whole() {
    let (_, store) = store(&[Step::LeaveHalf]);
    create(&store, "a", "all of it").unwrap();
    assert_eq!(read(&store, "a"), "all of it");
}

#[test]
fn a_read_that_ends_early_is_read_again() {
    let (script, store) = store(&[]);
    create(&store, "a", "all of it").unwrap();
    script
        .steps
        .lock()
        .unwrap()
        .extend([Step::Truncate, Step::Fail, Step::Truncate]);
    assert_eq!(read(&store, "a"), "all of it");
    script.steps.lock().unwrap().push_back(Step::Truncate);
    let range = wait(store.get_ranges(&Path::from("a"), &[1..3, 4..6])).unwrap();
    assert_eq!(range, ["ll", "of"]);
}

#[test]
fn lists_and_removals_are_whole_after_faults() {
    let (script, store) = store(&[]);
    for name in ["x/a", "x/b", "x/c"] {
        create(&store, name, "here").unwrap();
    }
    let fail = |times| script.steps.lock().unwrap().extend(vec![Step::Fail; times]);
    fail(2);
    let prefix = Path::from("x");
    let listed: Vec<ObjectMeta> = wait(store.list(Some(&prefix)).try_collect()).unwrap();
    assert_eq!(listed.len(), 3);
    fail(2);
    wait(store.delete(&Path::from("x/a"))).unwrap();
    fail(1);
    let listed = wait(store.list_with_delimiter(Some(&prefix))).unwrap();
    assert_eq!(listed.objects.len(), 2);
}

#[test]
fn what_lasts_is_not_tried_again() {
    for status in [400, 403] {
        let (script, store) = store(&[Step::Answer(status)]);
        create(&store, "a", "here").unwrap_err();
        assert_eq!(*script.operations.lock().unwrap(), 1);
    }
    let (script, store) = store(&[]);
    let error = wait(store.head(&Path::from("none"))).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert_eq!(*script.operations.lock().unwrap(), 1);
}

#[test]
fn an_outage_is_given_up_on_with_its_cause() {
    let (script, store) = store(&[Step::Answer(503); 100]);
    let error = create(&store, "a", "here").unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
    assert_eq!(*script.operations.lock().unwrap(), 31);
}

#[test]
fn an_object_below_a_prefix_is_called_by_its_path_there() {
    let (_, under) = store(&[]);
    let below = object_store::prefix::PrefixStore::new(under, "deep/below");
    let store = Retrying::new(Arc::new(below), Patience::REHEARSAL);
    create(&store, "v1/a", "here").unwrap();
    let path = Path::from("v1/a");
    let head = wait(store.head(&path)).unwrap();
    let read = wait(store.get(&path)).unwrap();
    assert_eq!((&head.location, &read.meta.location), (&path, &path));
}
