//! Messages of refusals, and what every service must keep.

use super::*;

fn opened(has_credentials: bool) -> Opened {
    Opened {
        objects: Arc::new(object_store::memory::InMemory::new()),
        endpoint: Some("https://minio:9000".to_owned()),
        has_credentials,
    }
}

fn answer(status: &str, code: &str) -> Error {
    let source = format!(
        "Error performing GET https://minio:9000/data in 3ms - Server returned non-2xx status code: {status}: \
         <Error><Code>{code}</Code><Message>No.</Message></Error>"
    );
    Error::Generic {
        store: "S3",
        source: source.into(),
    }
}

#[test]
fn refusals_say_which_variable_to_set() {
    let say = |error: &Error| explain(Cloud::S3, "data", &opened(true), Some(error));
    for (error, expected) in [
        (
            answer("404 Not Found", "NoSuchBucket"),
            "there is no bucket `data` at https://minio:9000",
        ),
        (
            answer("403 Forbidden", "SignatureDoesNotMatch"),
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            answer("403 Forbidden", "InvalidAccessKeyId"),
            "AWS_ACCESS_KEY_ID",
        ),
        (answer("403 Forbidden", "AccessDenied"), "list, read, write"),
        (
            answer("400 Bad Request", "AuthorizationHeaderMalformed"),
            "AWS_REGION",
        ),
    ] {
        assert!(say(&error).contains(expected), "{}", say(&error));
        assert!(!say(&error).contains("Error performing"), "{}", say(&error));
    }
    let silent = explain(Cloud::Google, "data", &opened(true), None);
    assert!(silent.contains("did not answer") && silent.contains("GOOGLE_BASE_URL"));
    let bare = explain(Cloud::Azure, "data", &opened(false), None);
    assert!(bare.contains("no credentials") && bare.contains("AZURE_STORAGE_ACCOUNT_KEY"));
}

#[test]
fn endpoints_without_encryption_or_with_secrets_are_refused() {
    let check =
        |endpoint: &str, allows| check_endpoint(Cloud::S3, Some(endpoint), allows).unwrap_err();
    assert!(check("http://host:9000", None).contains("AWS_ALLOW_HTTP=true"));
    assert!(check_endpoint(Cloud::S3, Some("http://host:9000"), Some("true")).is_ok());
    let message = check("https://key:hunter2@host", None);
    assert!(message.contains("AWS_ENDPOINT_URL") && !message.contains("hunter2"));
    assert!(check("host", None).contains("is no URL"));
}

/// `METIS_TEST_STORE=s3://bucket/prefix` with the variables of its service names a store to try.
#[test]
#[ignore = "needs a service and METIS_TEST_STORE"]
fn a_service_keeps_what_the_store_relies_on() {
    #[expect(clippy::disallowed_methods, reason = "names the service to test")]
    let url = std::env::var("METIS_TEST_STORE").unwrap();
    let store = crate::Store::open(&url).unwrap();
    let unique = crate::new_run_id();
    let path = |name: &str| format!("v1/media/{unique}/{name}");
    assert!(store.create(&path("a"), b"first".to_vec()).unwrap());
    assert!(!store.create(&path("a"), b"second".to_vec()).unwrap());
    assert_eq!(&store.get(&path("a")).unwrap()[..], b"first");
    for round in 0..3 {
        let path = path(&format!("race {round}"));
        let winners: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..32)
                .map(|index| {
                    let (store, path) = (&store, &path);
                    scope.spawn(move || {
                        let text = format!("number {index}");
                        (index, store.create(path, text.into_bytes()).unwrap())
                    })
                })
                .collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            results
                .filter_map(|(index, is_ours)| is_ours.then_some(index))
                .collect()
        });
        assert_eq!(winners.len(), 1);
        let text = format!("number {}", winners[0]);
        assert_eq!(store.get(&path).unwrap(), text.as_bytes());
    }
    let paths: Vec<String> = (0..100)
        .map(|index| path(&format!("many/{index}")))
        .collect();
    for path in &paths {
        store.create(path, b"x".to_vec()).unwrap();
    }
    assert_eq!(store.list(&path("many")).unwrap().len(), 100);
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    assert_eq!(store.sizes(&paths).unwrap(), vec![Some(1); 100]);
    for path in paths {
        store.remove(path).unwrap();
    }
    assert!(store.list(&path("many")).unwrap().is_empty());
    let (model, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let weights: Vec<u8> = (0..70_000_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(model.path().join("weights"), &weights).unwrap();
    let stored = store.import_model(model.path()).unwrap();
    store.copy_model(&stored, cache.path()).unwrap();
    assert_eq!(
        std::fs::read(cache.path().join("weights")).unwrap(),
        weights
    );
}
