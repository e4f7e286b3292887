//! An S3 server on loopback, shared by the tests of this process, and what tests do with the objects of a bucket.
//!
//! It is moto's server unless `METIS_TEST_S3_ENDPOINT` names another one (`cargo xtask test-ceph` does).

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::runtime::Runtime;

use crate::support::{python, variable};

const BUCKET: &str = "metis-tests";

/// A running server.
struct Server {
    endpoint: String,
    access_key: String,
    secret_key: String,
    /// Held while the server shall live: it ends when its standard input does, which the system closes with this process.
    _process: Option<(Child, ChildStdin)>,
    objects: AmazonS3,
    runtime: Runtime,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

impl Server {
    fn start() -> Self {
        let endpoint = variable("METIS_TEST_S3_ENDPOINT");
        let key = |name, other: &str| variable(name).unwrap_or_else(|| other.to_owned());
        let access_key = key("METIS_TEST_S3_ACCESS_KEY", "test-access");
        let secret_key = key("METIS_TEST_S3_SECRET_KEY", "test-secret");
        let bucket = format!("{BUCKET}-{}", std::process::id());
        let log = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("s3-server-{}.log", std::process::id()));
        let mut child = Command::new(python())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/s3/serve.py"))
            .arg(&bucket)
            .args(&endpoint)
            .env("AWS_ACCESS_KEY_ID", &access_key)
            .env("AWS_SECRET_ACCESS_KEY", &secret_key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let endpoint = line.trim().to_owned();
        assert!(
            endpoint.starts_with("http://"),
            "the S3 server did not start: {}",
            fs::read_to_string(&log).unwrap()
        );
        let objects = AmazonS3Builder::new()
            .with_endpoint(&endpoint)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(&bucket)
            .with_access_key_id(&access_key)
            .with_secret_access_key(&secret_key)
            .build()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        Self {
            endpoint,
            access_key,
            secret_key,
            _process: Some((child, stdin)),
            objects,
            runtime: Runtime::new().unwrap(),
        }
    }
}

/// A place of its own in the bucket.
#[derive(Clone, Debug)]
pub(crate) struct Prefix(String);

impl Prefix {
    /// A prefix that no other test has.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(format!("store-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The address for `--store`.
    pub(crate) fn url(&self) -> String {
        format!("s3://{BUCKET}-{}/{}", std::process::id(), self.0)
    }

    fn path(&self, object: &str) -> object_store::path::Path {
        object_store::path::Path::from(format!("{}/{object}", self.0))
    }

    pub(crate) fn read(&self, object: &str) -> Option<Vec<u8>> {
        let server = server();
        let read = async {
            match server.objects.get(&self.path(object)).await {
                Ok(found) => Some(found.bytes().await.unwrap().to_vec()),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => panic!("{error}"),
            }
        };
        server.runtime.block_on(read)
    }

    pub(crate) fn write(&self, object: &str, bytes: &[u8]) {
        let server = server();
        let path = self.path(object);
        let write = server.objects.put(&path, bytes.to_vec().into());
        server.runtime.block_on(write).unwrap();
    }

    pub(crate) fn remove(&self, object: &str) {
        let server = server();
        let path = self.path(object);
        let remove = server.objects.delete(&path);
        server.runtime.block_on(remove).unwrap();
    }

    /// Names of all objects, sorted.
    pub(crate) fn list(&self) -> Vec<String> {
        let server = server();
        let prefix = self.path("");
        let list = server
            .objects
            .list(Some(&prefix))
            .map_ok(|object| object.location.to_string());
        let names: Vec<String> = server.runtime.block_on(list.try_collect()).unwrap();
        let start = format!("{}/", self.0);
        let mut names: Vec<String> = names
            .into_iter()
            .map(|name| name.strip_prefix(&start).unwrap().to_owned())
            .collect();
        names.sort();
        names
    }
}

/// Gives a command the server's address and keys, as a user would.
pub(crate) fn prepare(command: &mut Command) {
    let server = server();
    command
        .env("AWS_ENDPOINT", &server.endpoint)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", &server.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
}

/// What every commit rests on.
#[test]
fn of_many_who_create_an_object_one_wins() {
    let server = server();
    let prefix = Prefix::new();
    for round in 0..3 {
        let path = prefix.path(&format!("v1/stages/{round}.json"));
        let create = |writer: u8| {
            let options = PutOptions::from(PutMode::Create);
            let put = server
                .objects
                .put_opts(&path, PutPayload::from(vec![writer]), options);
            match server.runtime.block_on(put) {
                Ok(_) => Some(writer),
                Err(object_store::Error::AlreadyExists { .. }) => None,
                Err(error) => panic!("{error}"),
            }
        };
        let create = &create;
        let winners: Vec<u8> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..16)
                .map(|writer| scope.spawn(move || create(writer)))
                .collect();
            let outcomes = writers.into_iter();
            outcomes
                .filter_map(|writer| writer.join().unwrap())
                .collect()
        });
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let object = format!("v1/stages/{round}.json");
        assert_eq!(prefix.read(&object), Some(winners));
        prefix.remove(&object);
        assert_eq!(prefix.read(&object), None);
    }
    assert!(prefix.list().is_empty());
}
