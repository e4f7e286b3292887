//! Checkpoints: the latest whole one is found, and only two are kept.

use engine_core::RowsDigest;

use super::*;

fn folder(step: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("moments"), format!("moments {step}")).unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    folder
}

fn write(store: &Store, key: &Digest, step: u64) -> StoredCheckpoint {
    let path = layout::part(&Digest::of(&step.to_le_bytes()));
    store.create(&path, b"rows".to_vec()).unwrap();
    let part = PartRef {
        path,
        rows: 1,
        bytes: 4,
        digest: RowsDigest("0".repeat(48)),
    };
    let outputs = BTreeMap::from([("metrics".to_owned(), vec![part])]);
    let state = serde_json::json!({"epoch": step});
    store
        .write_checkpoint(key, step, folder(step).path(), outputs, state)
        .unwrap()
}

fn latest(store: &Store, key: &Digest) -> Option<u64> {
    let found = store.latest_checkpoint(key).unwrap();
    found.map(|checkpoint| checkpoint.step)
}

#[test]
fn the_latest_checkpoint_comes_back_with_its_files_from_any_store() {
    let disk = tempfile::tempdir().unwrap();
    for store in [
        Store::open("memory://").unwrap(),
        Store::open(disk.path().to_str().unwrap()).unwrap(),
    ] {
        let (key, other) = (Digest::of(b"key"), Digest::of(b"other"));
        assert_eq!(latest(&store, &key), None);
        for step in [9, 10, 100] {
            write(&store, &key, step);
        }
        assert_eq!(latest(&store, &other), None);
        let found = store.latest_checkpoint(&key).unwrap().unwrap();
        assert_eq!((found.step, &found.state["epoch"]), (100, &100.into()));
        let files = tempfile::tempdir().unwrap();
        let restored = store.restore_checkpoint(&key, files.path()).unwrap();
        assert_eq!(restored.as_ref(), Some(&found));
        // Somebody else was faster and finished the stage.
        store.remove_checkpoints(&key);
        assert_eq!(
            std::fs::read_to_string(files.path().join("moments")).unwrap(),
            "moments 100"
        );
        let again = store.restore_checkpoint(&key, files.path()).unwrap();
        assert_eq!(again, None);
        assert_eq!(found.outputs["metrics"][0].rows, 1);
    }
}

#[test]
fn two_are_kept_and_none_after_the_stage_is_committed() {
    let store = Store::open("memory://").unwrap();
    let (key, other) = (Digest::of(b"key"), Digest::of(b"other"));
    write(&store, &other, 1);
    let all = |key| store.list(&layout::checkpoints(key)).unwrap().len();
    for step in 0..5 {
        write(&store, &key, step);
    }
    // Each is two files and the object that names them.
    assert_eq!(all(&key), 2 * 3);
    store.remove_checkpoints(&key);
    assert_eq!((all(&key), all(&other)), (0, 3));
    assert_eq!(latest(&store, &other), Some(1));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_written_anew() {
    let disk = tempfile::tempdir().unwrap();
    let store = Store::open(disk.path().to_str().unwrap()).unwrap();
    let key = Digest::of(b"key");
    let first = write(&store, &key, 1);
    let second = write(&store, &key, 2);
    std::fs::write(disk.path().join(&second.folder.path).join("moments"), "mo").unwrap();
    assert_eq!(latest(&store, &key), Some(1));
    write(&store, &key, 2);
    assert_eq!(latest(&store, &key), Some(2));
    std::fs::write(disk.path().join(layout::checkpoint(&key, 2)), "{ half").unwrap();
    assert_eq!(latest(&store, &key), Some(1));
    std::fs::remove_file(disk.path().join(&first.outputs["metrics"][0].path)).unwrap();
    assert_eq!(latest(&store, &key), None);
}

#[test]
fn checkpoints_with_equal_files_share_them_until_the_last_goes() {
    let store = Store::open("memory://").unwrap();
    let key = Digest::of(b"key");
    let same = folder(0);
    for step in 1..=3 {
        store
            .write_checkpoint(&key, step, same.path(), BTreeMap::new(), step.into())
            .unwrap();
    }
    let found = store.latest_checkpoint(&key).unwrap().unwrap();
    assert_eq!((found.step, found.state), (3, 3.into()));
}

#[test]
fn a_checkpoint_may_have_no_files() {
    let store = Store::open("memory://").unwrap();
    let key = Digest::of(b"key");
    let empty = tempfile::tempdir().unwrap();
    store
        .write_checkpoint(&key, 1, empty.path(), BTreeMap::new(), 0.into())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let found = store.restore_checkpoint(&key, folder.path()).unwrap();
    assert_eq!(found.unwrap().step, 1);
}
