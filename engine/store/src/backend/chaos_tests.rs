//! Every operation of a store at a fault in five: right results all the same, and faults of every kind below.

use std::collections::BTreeSet;

use object_store::memory::InMemory;

use super::*;
use crate::{Store, StoreError};

/// Stores that fail, in memory and on disk, over several seeds.
fn stores(folder: &std::path::Path) -> Vec<Store> {
    (0..12)
        .flat_map(|seed| {
            let disk = format!(
                "chaos+file://{}/{seed}?seed={seed}&rate=0.2",
                folder.display()
            );
            [format!("chaos+memory://?seed={seed}&rate=0.2"), disk]
        })
        .map(|url| Store::open(&url).unwrap())
        .collect()
}

#[test]
fn objects_are_written_read_and_removed_rightly() {
    let folder = tempfile::tempdir().unwrap();
    for store in stores(folder.path()) {
        let url = store.url().to_owned();
        let paths: Vec<String> = (0..40).map(|index| format!("v1/parts/{index}")).collect();
        for path in &paths {
            assert!(
                store.create(path, path.as_bytes().to_vec()).unwrap(),
                "{url}"
            );
            assert!(!store.create(path, b"another".to_vec()).unwrap(), "{url}");
            assert_eq!(store.get(path).unwrap(), path.as_bytes(), "{url}");
        }
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let sizes: Vec<Option<u64>> = paths.iter().map(|path| Some(path.len() as u64)).collect();
        assert_eq!(store.sizes(&paths).unwrap(), sizes, "{url}");
        for path in &paths[..20] {
            store.remove(path).unwrap();
            assert_eq!(store.size(path).unwrap(), None, "{url}");
            assert!(matches!(store.get(path), Err(StoreError::NotFound { .. })));
        }
        assert_eq!(store.sizes(&paths[..20]).unwrap(), vec![None; 20], "{url}");
    }
}

#[test]
fn media_and_models_survive() {
    let folder = tempfile::tempdir().unwrap();
    let model = tempfile::tempdir().unwrap();
    std::fs::write(model.path().join("config.json"), "{}").unwrap();
    std::fs::write(model.path().join("weights"), vec![7_u8; 70 << 20]).unwrap();
    for (index, store) in stores(folder.path()).into_iter().enumerate() {
        let media = store.put_media(b"an image").unwrap();
        assert_eq!(store.put_media(b"an image").unwrap(), media);
        assert_eq!(store.media(&media).unwrap(), b"an image");
        // Large files are the same work each time.
        if index % 4 < 2 {
            let stored = store.import_model(model.path()).unwrap();
            let copy = tempfile::tempdir().unwrap();
            store.copy_model(&stored, copy.path()).unwrap();
            assert_eq!(
                crate::external::folder_files(copy.path()).unwrap(),
                stored.files
            );
        }
    }
}

#[test]
fn one_of_many_that_create_an_object_at_once_wins() {
    let folder = tempfile::tempdir().unwrap();
    for store in stores(folder.path()) {
        for round in 0..5 {
            let path = format!("v1/stages/{round}");
            let winners: Vec<usize> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|index| {
                        let (store, path) = (&store, &path);
                        scope.spawn(move || {
                            let text = format!("{index}{}", "x".repeat(50));
                            (index, store.create(path, text.into_bytes()).unwrap())
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .filter_map(|(index, is_ours)| is_ours.then_some(index))
                    .collect()
            });
            let text = store.get(&path).unwrap();
            assert_eq!(winners.len(), 1, "{}", store.url());
            assert!(text.starts_with(winners[0].to_string().as_bytes()));
        }
    }
}

#[test]
fn a_list_is_whole_or_out_of_date_and_never_invented() {
    let store = Store::open("chaos+memory://?seed=3&rate=0.2").unwrap();
    let paths: BTreeSet<String> = (0..20).map(|index| format!("v1/media/{index}")).collect();
    for path in &paths {
        store.create(path, b"here".to_vec()).unwrap();
    }
    let mut counts = BTreeSet::new();
    for _ in 0..100 {
        let listed: BTreeSet<String> = store
            .list("v1/media")
            .unwrap()
            .into_iter()
            .map(|meta| meta.location.to_string())
            .collect();
        assert!(listed.is_subset(&paths));
        counts.insert(listed.len());
    }
    assert!(counts.contains(&20) && counts.contains(&0), "{counts:?}");
}

fn bare(seed: u64, rate: f64) -> Chaos {
    Chaos::new(
        Arc::new(InMemory::new()),
        ChaosSettings { seed, rate },
        true,
    )
}

/// Outcome of some puts and reads.
fn outcomes(chaos: &Chaos) -> Vec<String> {
    runtime::block_on(true, async {
        let mut outcomes = Vec::new();
        for index in 0..200 {
            let path = Path::from(format!("{index}"));
            let put = chaos
                .put_opts(
                    &path,
                    PutPayload::from_static(b"content"),
                    PutMode::Create.into(),
                )
                .await;
            let left = chaos.inner.head(&path).await.map(|meta| meta.size);
            let read = match chaos.get(&path).await {
                Ok(result) => result.bytes().await.map(|bytes| bytes.len()),
                Err(error) => Err(error),
            };
            outcomes.push(format!("{} {:?} {:?}", put.is_ok(), left.ok(), read.ok()));
        }
        outcomes
    })
}

#[test]
fn faults_follow_from_the_seed_and_are_of_every_kind() {
    let first = outcomes(&bare(1, 0.5));
    assert_eq!(outcomes(&bare(1, 0.5)), first);
    assert_ne!(outcomes(&bare(2, 0.5)), first);
    for kind in [
        "true Some(7) Some(7)",
        "true Some(7) Some(3)",
        "true Some(7) None",
        "false None",
        "false Some(7)",
        "false Some(3)",
    ] {
        assert!(
            first.iter().any(|outcome| outcome.starts_with(kind)),
            "{kind} in {first:?}"
        );
    }
    assert!(
        outcomes(&bare(1, 0.0))
            .iter()
            .all(|outcome| outcome == "true Some(7) Some(7)")
    );
}
