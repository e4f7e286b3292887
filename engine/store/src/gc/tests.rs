//! What is garbage and what is not.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use engine_core::{Dataset, Digest, ModelFolder};
use schemas::TableName;
use schemas::record::{RunEnded, RunStarted, StageRecord, StageStatus};

use super::*;
use crate::{DatasetWriter, MadeBy, Manifest, PartLimits};

const ALL: GcOptions = GcOptions {
    older_than: Duration::ZERO,
    grace: Duration::ZERO,
    keep_runs: None,
};

fn dataset(store: &Store, texts: &[&str]) -> Dataset {
    let column: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut writer = DatasetWriter::try_new(
        store,
        TableName::Rows,
        batch.schema(),
        PartLimits::default(),
    )
    .unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap()
}

fn commit(store: &Store, name: &str, artifact: engine_core::Artifact) -> Digest {
    let manifest = Manifest {
        key: Digest::of(name.as_bytes()),
        material: serde_json::json!({"kind": "sql"}),
        kind: "sql".to_owned(),
        version: 1,
        outputs: [("rows".to_owned(), artifact)].into(),
        seconds: 1.0,
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
    };
    store.commit(&manifest).unwrap();
    manifest.key
}

fn commit_rows(store: &Store, name: &str, texts: &[&str]) -> Digest {
    commit(
        store,
        name,
        engine_core::Artifact::Dataset(dataset(store, texts)),
    )
}

fn model(store: &Store, text: &str) -> ModelFolder {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), text).unwrap();
    store.import_model(folder.path()).unwrap()
}

fn record(store: &Store, run: &str, key: &Digest, ends: bool) {
    let started = RunStarted {
        run: run.to_owned(),
        pipeline: "p".to_owned(),
        text: String::new(),
        resolved: None,
        started: String::new(),
        version: String::new(),
        stages: vec!["a".to_owned()],
    };
    store.record_start(&started).unwrap();
    let stage = StageRecord {
        stage: "a".to_owned(),
        kind: "sql".to_owned(),
        key: Some(key.to_string()),
        status: StageStatus::Done,
        started: String::new(),
        seconds: 0.0,
        rows: None,
        outputs: [].into(),
        warnings: vec![],
        error: None,
        ..StageRecord::default()
    };
    store.record_stage(run, 0, &stage).unwrap();
    if ends {
        let ended = RunEnded {
            run: run.to_owned(),
            ended: String::new(),
            status: "done".to_owned(),
            seconds: 0.0,
        };
        store.record_end(&ended).unwrap();
    }
}

fn kinds(garbage: &Garbage) -> Vec<&str> {
    garbage
        .objects
        .iter()
        .map(|object| object.kind.as_str())
        .collect()
}

#[test]
fn what_no_manifest_names_goes_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let used = store.put_media(b"used").unwrap();
    let in_text = store.put_media(b"in a text").unwrap();
    let unused = store.put_media(b"unused").unwrap();
    commit_rows(&store, "a", &[&used, &format!("see [\"{in_text}\"]")]);
    let kept = model(&store, "kept");
    commit(&store, "b", engine_core::Artifact::Model(kept.clone()));
    let lost = model(&store, "lost");
    let part = dataset(&store, &[&unused]);
    let staged = format!("{}#3", part.parts[0].path);
    std::fs::write(folder.path().join(&staged), "half").unwrap();

    let found = store.find_garbage(&ALL).unwrap();
    let paths: Vec<&str> = found
        .objects
        .iter()
        .map(|object| object.path.as_str())
        .collect();
    let expected = [
        part.parts[0].path.clone(),
        format!("{}/config.json", lost.path),
        layout::media(&unused),
        staged,
    ];
    assert_eq!(paths, expected);
    assert_eq!(kinds(&found), ["part", "model", "media", "unfinished"]);
    for object in &found.objects {
        store.remove_garbage(object).unwrap();
    }
    assert_eq!(store.find_garbage(&ALL).unwrap(), Garbage::default());
    assert!(store.media(&used).is_ok() && store.media(&in_text).is_ok());
    assert!(store.local_model_folder(&kept).is_ok());
    let key = Digest::of(b"a");
    assert!(matches!(store.lookup(&key).unwrap(), crate::Lookup::Hit(_)));
}

#[test]
fn young_objects_stay_whatever_the_age_says() {
    let store = Store::open("memory://").unwrap();
    dataset(&store, &["lost"]);
    let hour = Duration::from_hours(1);
    for (older_than, grace) in [(Duration::ZERO, hour), (hour, Duration::ZERO)] {
        let options = GcOptions {
            older_than,
            grace,
            keep_runs: Some(0),
        };
        assert_eq!(store.find_garbage(&options).unwrap(), Garbage::default());
    }
    assert_eq!(store.find_garbage(&ALL).unwrap().objects.len(), 1);
}

#[test]
fn nothing_goes_while_a_run_may_be_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let key = commit_rows(&store, "a", &["x"]);
    let lost = dataset(&store, &["lost"]);
    // Old parts: only the run's record is young.
    let options = GcOptions {
        grace: Duration::from_hours(1),
        ..ALL
    };
    let old = std::time::SystemTime::UNIX_EPOCH;
    let part = folder.path().join(&lost.parts[0].path);
    let file = std::fs::File::options().write(true).open(part).unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(kinds(&store.find_garbage(&options).unwrap()), ["part"]);
    record(&store, "run-1", &key, false);
    let held = store.find_garbage(&options).unwrap();
    assert_eq!(
        (held.held_by.as_deref(), held.objects.len()),
        (Some("run-1"), 0)
    );
    // Killed and gone on with: the later run did its work.
    record(&store, "run-2", &key, true);
    assert!(store.find_garbage(&options).unwrap().held_by.is_some());
    let gone_on_with = GcOptions {
        older_than: options.grace,
        ..ALL
    };
    assert_eq!(kinds(&store.find_garbage(&gone_on_with).unwrap()), ["part"]);
}

#[test]
fn stages_that_no_kept_run_used_go_with_all_that_only_they_name() {
    let store = Store::open("memory://").unwrap();
    let old = commit_rows(&store, "old", &["old"]);
    let new = commit_rows(&store, "new", &["new"]);
    record(&store, "run-1", &old, true);
    record(&store, "run-2", &new, true);
    let keeping = |number| GcOptions {
        keep_runs: Some(number),
        ..ALL
    };
    assert!(store.find_garbage(&keeping(2)).unwrap().objects.is_empty());
    let found = store.find_garbage(&keeping(1)).unwrap();
    assert_eq!(kinds(&found), ["stage", "part"]);
    assert_eq!(found.objects[0].path, layout::manifest(&old, 0));
}

#[test]
fn in_doubt_nothing_is_garbage() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    store.put_media(b"an image").unwrap();
    let rows = dataset(&store, &["x"]);
    commit(&store, "a", engine_core::Artifact::Dataset(rows.clone()));
    std::fs::remove_file(folder.path().join(&rows.parts[0].path)).unwrap();
    // Rows that cannot be read may name any media.
    let found = store.find_garbage(&ALL).unwrap();
    assert!(found.objects.is_empty());
    assert!(found.media_kept.unwrap().contains(&rows.parts[0].path));
    // A damaged manifest may name any part.
    let path = folder.path().join("v1/stages/damaged.json");
    std::fs::write(path, "{ half").unwrap();
    let error = store.find_garbage(&ALL).unwrap_err().to_string();
    assert!(error.contains("damaged.json"), "{error}");
}

fn map_part(store: &Store, name: &str, rows: &Dataset) -> Digest {
    let part = crate::MapPartManifest {
        key: Digest::of(name.as_bytes()),
        material: serde_json::json!({}),
        rows: 1,
        outputs: [("rows".to_owned(), rows.parts.clone())].into(),
        failed: vec![],
        seconds: 0.0,
        tokens: 0,
        created: String::new(),
    };
    store.commit_map_part(&part).unwrap();
    part.key
}

fn with_map_parts(store: &Store, name: &str, rows: &Dataset, parts: &[Digest]) -> Manifest {
    let key = commit(store, name, engine_core::Artifact::Dataset(rows.clone()));
    let manifest = store.manifest(&key).unwrap().unwrap();
    let reference = |key: &Digest| crate::MapPartRef {
        key: key.clone(),
        rows_digest: rows.parts[0].digest.clone(),
        rows: 1,
        failed: 0,
    };
    Manifest {
        parts: parts.iter().map(reference).collect(),
        ..manifest
    }
}

/// Paths of what was found, by kind.
fn found(store: &Store, options: &GcOptions) -> Vec<(&'static str, String)> {
    let garbage = store.find_garbage(options).unwrap();
    let objects = garbage.objects.into_iter();
    objects
        .map(|object| (object.kind.as_str(), object.path))
        .collect()
}

#[test]
fn parts_of_map_stages_stay_with_their_stage_or_while_they_are_young() {
    let store = Store::open("memory://").unwrap();
    // A part without rows is named by nothing but the part's own manifest.
    let (rows, empty, lost) = (
        dataset(&store, &["rows"]),
        dataset(&store, &[]),
        dataset(&store, &["lost"]),
    );
    let used = map_part(&store, "used", &rows);
    let used_empty = map_part(&store, "empty", &empty);
    let given_up = map_part(&store, "given up", &lost);
    let manifest = with_map_parts(&store, "stage", &rows, &[used, used_empty]);
    let generation = store
        .commit_generation(&manifest, &crate::Generations::default())
        .unwrap();
    assert!(generation.is_ours);
    let expected = [
        ("map-part", layout::map_part(&given_up)),
        ("part", lost.parts[0].path.clone()),
    ];
    assert_eq!(found(&store, &ALL), expected);
    let hour = GcOptions {
        older_than: Duration::from_hours(1),
        ..ALL
    };
    assert_eq!(found(&store, &hour), []);
    // Of a stage that no kept run used everything goes, all generations included.
    let none = GcOptions {
        keep_runs: Some(0),
        ..ALL
    };
    let kinds: Vec<&str> = found(&store, &none).iter().map(|(kind, _)| *kind).collect();
    let expected = [
        "stage", "stage", "map-part", "map-part", "map-part", "part", "part", "part",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_damaged_part_of_a_map_stage_counts_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let rows = dataset(&store, &["rows"]);
    let key = map_part(&store, "used", &rows);
    let manifest = with_map_parts(&store, "stage", &rows, std::slice::from_ref(&key));
    store
        .commit_generation(&manifest, &crate::Generations::default())
        .unwrap();
    std::fs::write(folder.path().join(layout::map_part(&key)), "{ half").unwrap();
    assert_eq!(found(&store, &ALL), []);
}

fn checkpoint(store: &Store, name: &str, step: u64) -> crate::StoredCheckpoint {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("moments"), format!("{name} {step}")).unwrap();
    let rows = dataset(store, &[name, &step.to_string()]);
    let outputs = [("metrics".to_owned(), rows.parts)].into();
    let key = Digest::of(name.as_bytes());
    store
        .write_checkpoint(&key, step, folder.path(), outputs, 0.into())
        .unwrap()
}

#[test]
fn checkpoints_go_when_their_stage_is_finished_or_they_are_old() {
    let store = Store::open("memory://").unwrap();
    let unfinished = checkpoint(&store, "unfinished", 3);
    let finished = checkpoint(&store, "finished", 3);
    commit_rows(&store, "finished", &["x"]);
    // Not yet old, but nobody can be writing them any more.
    let young = GcOptions {
        older_than: Duration::from_hours(1),
        ..ALL
    };
    let finished = [
        ("checkpoint", layout::checkpoint(&finished.key, 3)),
        ("checkpoint", format!("{}/moments", finished.folder.path)),
    ];
    assert_eq!(found(&store, &young), finished);
    // Rows of checkpoints that stay, stay: these are too young to tell. By age everything goes.
    let all = found(&store, &ALL);
    assert_eq!(
        all.iter().filter(|(kind, _)| *kind == "checkpoint").count(),
        4
    );
    assert!(all.contains(&("part", unfinished.outputs["metrics"][0].path.clone())));
    for object in store.find_garbage(&ALL).unwrap().objects {
        store.remove_garbage(&object).unwrap();
    }
    assert_eq!(store.latest_checkpoint(&unfinished.key).unwrap(), None);
    assert_eq!(found(&store, &ALL), []);
}

#[test]
fn what_a_young_checkpoint_names_stays_however_old_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let kept = checkpoint(&store, "kept", 3);
    let lost = dataset(&store, &["lost"]);
    let old = |path: &str| {
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path().join(path));
        file.unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    for path in [
        &kept.outputs["metrics"][0].path,
        &format!("{}/moments", kept.folder.path),
        &lost.parts[0].path,
    ] {
        old(path);
    }
    let hour = GcOptions {
        older_than: Duration::from_hours(1),
        ..ALL
    };
    assert_eq!(found(&store, &hour), [("part", lost.parts[0].path.clone())]);
    // A write of another checkpoint that was killed before its commit.
    let orphan = format!("{}/files/orphan/moments", layout::checkpoints(&kept.key));
    store.create(&orphan, b"orphan".to_vec()).unwrap();
    old(&orphan);
    assert!(found(&store, &hour).contains(&("checkpoint", orphan)));
    assert_eq!(store.latest_checkpoint(&kept.key).unwrap(), Some(kept));
}

#[test]
fn media_in_rows_of_parts_and_checkpoints_stay() {
    let store = Store::open("memory://").unwrap();
    let in_part = store.put_media(b"in a part").unwrap();
    let lost = store.put_media(b"lost").unwrap();
    let rows = dataset(&store, &[&in_part]);
    let key = map_part(&store, "used", &rows);
    let other = dataset(&store, &["no media"]);
    let manifest = with_map_parts(&store, "stage", &other, &[key]);
    store
        .commit_generation(&manifest, &crate::Generations::default())
        .unwrap();
    assert_eq!(found(&store, &ALL), [("media", layout::media(&lost))]);
}

#[test]
fn a_sign_of_life_keeps_everything_in_a_long_stage() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).unwrap();
    let key = commit_rows(&store, "a", &["x"]);
    let lost = dataset(&store, &["lost"]);
    record(&store, "run-1", &key, false);
    for meta in store.list("v1").unwrap() {
        let path = folder.path().join(meta.location.as_ref());
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let hour = GcOptions {
        older_than: Duration::from_hours(1),
        grace: Duration::from_hours(1),
        keep_runs: None,
    };
    assert_eq!(found(&store, &hour), [("part", lost.parts[0].path.clone())]);
    store.record_alive("run-1");
    let held = store.find_garbage(&hour).unwrap();
    assert_eq!(held.held_by.as_deref(), Some("run-1"));
    assert!(held.objects.is_empty());
}
