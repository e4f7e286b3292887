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
    assert_eq!(found.objects[0].path, layout::manifest(&old));
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
