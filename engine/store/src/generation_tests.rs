//! Several results under one key.

use std::collections::BTreeMap;

use engine_core::{Artifact, Dataset};
use schemas::TableName;

use super::*;
use crate::MadeBy;

fn manifest(rows: &str) -> Manifest {
    let dataset = Dataset {
        digest: Digest::of(rows.as_bytes()),
        table: TableName::Rows,
        rows: 0,
        parts: vec![],
    };
    Manifest {
        key: Digest::of(b"key"),
        material: serde_json::json!({"kind": "sql"}),
        kind: "sql".to_owned(),
        version: 1,
        outputs: BTreeMap::from([("rows".to_owned(), Artifact::Dataset(dataset))]),
        seconds: 1.5,
        created: "2026-01-01T00:00:00Z".to_owned(),
        warnings: vec![],
        made_by: MadeBy {
            version: "0.1.0".to_owned(),
            backend: None,
        },
        generation: 0,
        quarantined: 0,
        parts: vec![],
        replayed_from: None,
    }
}

fn found(store: &Store) -> (u32, Digest) {
    let generations = store.generations().unwrap();
    let key = Digest::of(b"key");
    match store.lookup_latest(&key, &generations).unwrap() {
        Lookup::Hit(manifest) => (
            manifest.generation,
            manifest.outputs["rows"].digest().clone(),
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_latest_generation_counts_and_earlier_ones_stay() {
    let store = Store::open("memory://").unwrap();
    let first = manifest("first");
    store.commit(&first).unwrap();
    assert_eq!(store.generations().unwrap(), Generations::default());
    assert_eq!(found(&store), (0, Digest::of(b"first")));
    for number in 1..12 {
        let generations = store.generations().unwrap();
        let next = manifest(&number.to_string());
        assert!(
            store
                .commit_generation(&next, &generations)
                .unwrap()
                .is_ours
        );
        assert_eq!(
            found(&store),
            (number, Digest::of(number.to_string().as_bytes()))
        );
    }
    assert_eq!(
        store.lookup(&first.key).unwrap(),
        Lookup::Hit(Box::new(first.clone()))
    );
    let third = store
        .find_generation(first.key.as_str(), 3)
        .unwrap()
        .unwrap();
    assert_eq!(third.outputs["rows"].digest(), &Digest::of(b"3"));
}

#[test]
fn two_that_commit_at_once_share_equal_results_and_number_others() {
    let store = Store::open("memory://").unwrap();
    store.commit(&manifest("first")).unwrap();
    let seen_by_both = store.generations().unwrap();
    let ours = store
        .commit_generation(&manifest("new"), &seen_by_both)
        .unwrap();
    let same = store
        .commit_generation(&manifest("new"), &seen_by_both)
        .unwrap();
    let other = store
        .commit_generation(&manifest("other"), &seen_by_both)
        .unwrap();
    assert_eq!((ours.manifest.generation, ours.is_ours), (1, true));
    assert_eq!((same.manifest.generation, same.is_ours), (1, false));
    assert_eq!((other.manifest.generation, other.is_ours), (2, true));
}

#[test]
fn a_damaged_generation_is_replaced_by_a_plain_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    store.commit(&manifest("first")).unwrap();
    store
        .commit_generation(&manifest("second"), &Generations::default())
        .unwrap();
    let key = Digest::of(b"key");
    std::fs::write(folder.path().join(layout::manifest(&key, 1)), "{").unwrap();
    let generations = store.generations().unwrap();
    assert!(matches!(
        store.lookup_latest(&key, &generations).unwrap(),
        Lookup::Broken(_)
    ));
    let again = Manifest {
        generation: generations.latest(&key),
        ..manifest("third")
    };
    assert!(store.commit(&again).unwrap().is_ours);
    assert_eq!(found(&store), (1, Digest::of(b"third")));
}

#[test]
fn a_manifest_of_before_there_were_parts_still_reads() {
    let store = Store::open("memory://").unwrap();
    let mut old = serde_json::to_value(manifest("first")).unwrap();
    let fields = old.as_object_mut().unwrap();
    for added in ["generation", "quarantined"] {
        fields.remove(added).unwrap();
    }
    let key = Digest::of(b"key");
    store.create_json(&layout::manifest(&key, 0), &old).unwrap();
    assert_eq!(store.manifest(&key).unwrap(), Some(manifest("first")));
    let mut strange = old;
    strange["more"] = 1.into();
    let strange = serde_json::from_value::<Manifest>(strange).unwrap_err();
    assert!(strange.to_string().contains("unknown field `more`"));
}
