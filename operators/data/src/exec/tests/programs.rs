//! Programs that end badly, hang, flood or leave something behind, and what a program sees of us.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;

#[test]
fn a_program_that_ends_badly_is_blamed_with_its_last_words() {
    assert_says(
        &fault("cat > /dev/null; echo 'no such module: rewards' >&2; exit 3"),
        &["exit code 3", "no such module: rewards", "/bin/sh -c"],
    );
    assert_says(&fault("kill -SEGV $$"), &["signal 11"]);
    assert_says(&fault("kill -KILL $$"), &["signal 9"]);
    let flood = fault(
        "cat > /dev/null; i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i >&2; done; exit 1",
    );
    assert_says(&flood, &["line 4981", "line 5000"]);
    assert!(!flood.contains("line 4980"), "{flood}");
    let mut config = shell("", "text", "text");
    config.command = vec!["no-such-program".to_owned(), "--fast".to_owned()];
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(
        &message,
        &["`no-such-program --fast`", "could not be started"],
    );
}

#[test]
fn what_is_no_stream_is_refused() {
    let stream = stream_of(&texts(&["a", "b"]));
    for (script, words) in [
        ("cat > /dev/null", ["wrote nothing", "Arrow stream"]),
        ("echo starting; cat", ["begins with", "starting"]),
        ("cat; echo all done", ["after the end", "all done"]),
        (
            "cat > /dev/null; head -c 100 stream",
            ["breaks off", "close the writer"],
        ),
    ] {
        let io = TestIo::new();
        std::fs::write(io.root.join("stream"), &stream).unwrap();
        let message = apply(&shell(script, "text", "text"), &io, &texts(&["a", "b"])).unwrap_err();
        assert_says(&message, &words);
    }
}

#[test]
fn no_damaged_stream_is_taken_for_a_whole_one() {
    let whole = stream_of(&texts(&["a", "b", "cc"]));
    for length in 0..whole.len() {
        assert!(
            stream::read(whole[..length].to_vec()).is_err(),
            "cut to {length} bytes"
        );
    }
    // Some bits are padding or text; the others must end in an error, whatever they claim.
    for position in 0..whole.len() {
        for bit in [0x01, 0x80] {
            let mut damaged = whole.clone();
            damaged[position] ^= bit;
            let _ = stream::read(damaged);
        }
    }
    assert_eq!(stream::read(whole).unwrap().batches[0].num_rows(), 3);
}

#[test]
fn a_program_that_does_not_read_its_rows_is_refused() {
    let line = "x".repeat(1000);
    let rows = texts(&vec![line.as_str(); 5000]);
    let io = with_stream(&rows);
    let message = apply(&shell("cat stream", "text", "text"), &io, &rows).unwrap_err();
    assert_says(&message, &["ended before it had read all rows"]);
}

#[test]
fn a_program_that_hangs_is_killed_with_all_that_it_started() {
    let mut config = shell(
        "sleep 1000 & echo $! > child; echo waiting >&2; wait",
        "text",
        "text",
    );
    config.timeout_seconds = 1;
    let io = TestIo::new();
    let message = apply(&config, &io, &texts(&["a"])).unwrap_err();
    assert_says(&message, &["within 1 s", "timeout-seconds", "waiting"]);
    assert_is_gone(&std::fs::read_to_string(io.root.join("child")).unwrap());
}

#[test]
fn what_a_program_leaves_behind_is_killed() {
    let io = TestIo::new();
    let script = "sleep 1000 > /dev/null 2>&1 < /dev/null & echo $! > child; cat";
    apply(&shell(script, "text", "text"), &io, &texts(&["a"])).unwrap();
    assert_is_gone(&std::fs::read_to_string(io.root.join("child")).unwrap());
}

#[test]
fn what_keeps_the_output_open_holds_nobody_up() {
    let io = TestIo::new();
    let message = apply(
        &shell("cat > /dev/null; sleep 1000 & ", "text", "text"),
        &io,
        &texts(&["a"]),
    )
    .unwrap_err();
    assert_says(&message, &["still held its standard output open"]);
}

#[test]
fn too_much_output_and_too_much_memory_end_a_program() {
    let mut config = shell("cat /dev/zero", "text", "text");
    config.output_mb = Some(1);
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &["more than 1 MB", "output-mb"]);

    // The process that takes the memory is not the one that was started.
    let script =
        "python3 -c 'import time; x = bytearray(b\"x\") * (300 << 20); time.sleep(1000)'; true";
    let mut config = shell(script, "text", "text");
    config.memory_mb = 100;
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &["MB of memory", "`memory-mb` allows 100"]);
}

#[test]
fn a_wish_to_stop_ends_a_program() {
    let io = TestIo::new();
    let command = ["/bin/sh", "-c", "echo $$ > child; sleep 1000"].map(str::to_owned);
    let runner = Runner {
        program: Program::new(&command, &io.root, &[]).unwrap(),
        limits: Limits {
            time: Duration::from_secs(1000),
            memory_mb: 1000,
            output_mb: 1,
        },
    };
    let stop = AtomicBool::new(false);
    let child = io.root.join("child");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until("the program runs", || {
                std::fs::read_to_string(&child).is_ok_and(|text| text.ends_with('\n'))
            });
            stop.store(true, Ordering::Relaxed);
        });
        let result = runner.run(texts(&["a"]), &|| stop.load(Ordering::Relaxed), |_| Ok(()));
        assert!(matches!(result, Err(ProgramError::Interrupted)));
    });
    assert_is_gone(&std::fs::read_to_string(&child).unwrap());
}

#[test]
fn a_program_sees_no_more_of_us_than_it_should() {
    let message = fault("cat > /dev/null; env | cut -d= -f1 | sort | tr '\\n' ' ' >&2; exit 1");
    assert_says(&message, &["PATH", "PYTHONHASHSEED"]);
    let io = TestIo::new();
    let ours = std::fs::File::create(io.root.join("a-file-of-ours")).unwrap();
    let files = fault("cat > /dev/null; ls -l /proc/self/fd >&2; exit 1");
    assert_says(&files, &["0 -> pipe:"]);
    assert!(!files.contains("a-file-of-ours"), "{files}");
    drop(ours);

    let (name, value) = a_variable();
    let script = format!("cat > /dev/null; echo \"got ${name}\" >&2; exit 1");
    let mut config = shell(&script, "text", "text");
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert!(!message.contains(&format!("got {value}")), "{message}");
    config.env = vec![name];
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &[&format!("got {value}")]);
    config.env = vec!["NO_SUCH_VARIABLE_AT_ALL".to_owned()];
    let message = apply(&config, &TestIo::new(), &texts(&["a"])).unwrap_err();
    assert_says(&message, &["`NO_SUCH_VARIABLE_AT_ALL` is not set"]);
}

/// A variable of this process that a program does not get unasked, with its value.
#[expect(
    clippy::disallowed_methods,
    reason = "the test is about variables of the environment"
)]
fn a_variable() -> (String, String) {
    let of_the_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
    let is_plain = |text: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        !text.is_empty() && text.chars().all(is_plain)
    };
    std::env::vars()
        .find(|(name, value)| {
            let is_known = program::PASSED_ON.contains(&name.as_str())
                || of_the_shell.contains(&name.as_str());
            !is_known && is_plain(name) && is_plain(value)
        })
        .expect("tests have some variable of the kind")
}

/// Waits for something that takes moments.
fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "it took too long until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn assert_is_gone(process: &str) {
    let stat = format!("/proc/{}/stat", process.trim());
    until("the process is gone", || {
        // A killed process whose new parent has not noticed yet is a zombie.
        std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z"))
    });
}
