//! Parts of map stages: committed once, found again, replaced when damaged.

use schemas::TableName;

use super::*;

fn part(store: &Store, name: &str, seconds: f64) -> MapPartManifest {
    let path = layout::part(&Digest::of(name.as_bytes()));
    store.create(&path, name.as_bytes().to_vec()).unwrap();
    let output = PartRef {
        path,
        rows: 3,
        bytes: name.len() as u64,
        digest: engine_core::RowsDigest("0".repeat(48)),
    };
    MapPartManifest {
        key: Digest::of(name.as_bytes()),
        material: serde_json::json!({"rows": name}),
        rows: 4,
        outputs: BTreeMap::from([(TableName::Verdicts.to_string(), vec![output])]),
        failed: vec![FailedRowRecord {
            row: 2,
            row_key: "prompt_id=a".to_owned(),
            error: "no answer".to_owned(),
        }],
        seconds,
        tokens: 7,
        created: "2026-01-01T00:00:00Z".to_owned(),
    }
}

#[test]
fn the_first_commit_of_a_part_stands() {
    let store = Store::open("memory://").unwrap();
    let (first, second) = (part(&store, "a", 1.0), part(&store, "a", 2.0));
    assert_eq!(store.lookup_map_part(&first.key).unwrap(), None);
    assert!(store.commit_map_part(&first).unwrap().is_ours);
    let commit = store.commit_map_part(&second).unwrap();
    assert_eq!((commit.manifest, commit.is_ours), (first.clone(), false));
    assert_eq!(store.lookup_map_part(&first.key).unwrap(), Some(first));
}

#[test]
fn a_part_that_is_not_whole_is_none_and_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let first = part(&store, "rows", 1.0);
    store.commit_map_part(&first).unwrap();
    let output = folder.path().join(&first.outputs["verdicts"][0].path);
    std::fs::write(&output, "ro").unwrap();
    assert_eq!(store.lookup_map_part(&first.key).unwrap(), None);
    std::fs::write(&output, "rows").unwrap();
    assert!(store.lookup_map_part(&first.key).unwrap().is_some());
    let manifest = folder.path().join(layout::map_part(&first.key));
    for text in ["{ half", ""] {
        std::fs::write(&manifest, text).unwrap();
        assert_eq!(store.lookup_map_part(&first.key).unwrap(), None);
        let again = part(&store, "rows", 2.0);
        assert!(store.commit_map_part(&again).unwrap().is_ours);
        assert_eq!(store.lookup_map_part(&first.key).unwrap(), Some(again));
    }
    // Moved by hand under another key.
    let other = Digest::of(b"other");
    std::fs::copy(&manifest, folder.path().join(layout::map_part(&other))).unwrap();
    assert_eq!(store.lookup_map_part(&other).unwrap(), None);
}

#[test]
fn many_lookups_answer_in_the_order_of_their_keys() {
    let store = Store::open("memory://").unwrap();
    let names: Vec<String> = (0..50).map(|index| index.to_string()).collect();
    for name in names.iter().step_by(3) {
        store.commit_map_part(&part(&store, name, 1.0)).unwrap();
    }
    let keys: Vec<Digest> = names
        .iter()
        .map(|name| Digest::of(name.as_bytes()))
        .collect();
    let found = store.lookup_map_parts(&keys).unwrap();
    for (index, (found, key)) in found.iter().zip(&keys).enumerate() {
        let expected = (index % 3 == 0).then_some(key);
        assert_eq!(found.as_ref().map(|part| &part.key), expected);
    }
}
