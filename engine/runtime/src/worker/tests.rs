//! Workers that misbehave, played by shell scripts.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::time::Duration;

use engine_core::StageEvent;

use super::client::WorkerPool;
use super::{StageRequest, WorkerOptions, WorkerSetup};
use crate::Failure;
use crate::io::StageListener;
use crate::keys::Inputs;
use crate::stage::StageJob;

const READY: &str = r#"echo '{"ready":{"backend":"none"}}'"#;

#[derive(Default)]
struct Events(Mutex<Vec<StageEvent>>);

impl StageListener for Events {
    fn event(&self, event: StageEvent) {
        self.0.lock().unwrap().push(event);
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

fn request() -> StageRequest {
    StageRequest {
        stage: "probe".to_owned(),
        config: serde_json::json!({}),
        seed: 1,
        inputs: Inputs::new(),
        outputs: Vec::new(),
        job: StageJob {
            key: engine_core::Digest::of(b"key"),
            kind: "rollout".to_owned(),
            version: 1,
            config: serde_json::json!({}),
            uses_seed: true,
            quarantine: None,
            is_forced: false,
            replay: Vec::new(),
            memory_budget: 1,
            checkpoint_every: Duration::ZERO,
            threads: 1,
        },
    }
}

/// How a stage ends whose worker is this script.
fn failure(script: &str) -> Failure {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("worker");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = WorkerOptions {
        start: Duration::from_millis(400),
        silence: Duration::from_millis(400),
        stall: Duration::from_millis(400),
        ..WorkerOptions::new(program)
    };
    let setup = WorkerSetup {
        version: "0.0.0".to_owned(),
        store: "file:///nowhere".to_owned(),
        root: folder.path().to_owned(),
        threads: 1,
        device: "cpu".to_owned(),
    };
    let pool = WorkerPool::new(options, setup);
    pool.run(&request(), &Events::default()).unwrap_err()
}

#[test]
fn each_wait_has_its_limit_and_names_the_stage() {
    let beat = r#"while :; do echo '"heartbeat"'; sleep 0.05; done"#;
    let same = r#"while :; do echo '{"event":{"progress":{"done":1,"total":9,"unit":"rows","tokens":5,"note":""}}}'; sleep 0.05; done"#;
    let cases = [
        ("exec sleep 30".to_owned(), "said nothing for 0.4 s"),
        (beat.to_owned(), "was not ready after 0.4 s"),
        (
            format!("{READY}\n{beat}"),
            "lives but came no further for 0.4 s",
        ),
        (
            format!("{READY}\n{same}"),
            "lives but came no further for 0.4 s",
        ),
    ];
    for (script, expected) in cases {
        let failure = failure(&script);
        let message = failure.to_string();
        assert!(
            message.contains("stage `probe`") && message.contains(expected),
            "{message}"
        );
        assert!(failure.is_transient, "another attempt may succeed");
    }
}

#[test]
fn a_dead_worker_leaves_its_status_and_its_last_words() {
    let code = failure("echo 'no such device' >&2\nexit 7");
    assert!(code.to_string().contains("exit code 7"), "{code}");
    assert_eq!(code.log, ["no such device"]);
    assert!(!code.is_transient, "it would end the same way again");
    let signal = failure(&format!("{READY}\nkill -SEGV $$"));
    assert!(
        signal.to_string().contains("segmentation fault"),
        "{signal}"
    );
    assert!(signal.is_transient);
}

#[test]
fn a_worker_that_reports_a_failure_is_believed() {
    let told = failure(
        r#"echo '{"failed":{"domain":"data","chain":["row 3 is empty"],"log":[]}}'
sleep 1"#,
    );
    assert_eq!(told.chain, ["row 3 is empty"]);
    assert!(!told.is_transient);
}
