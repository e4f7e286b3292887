//! Pipelines of several files, and with loops: every mistake once, in its own file.

use super::assert_told;
use super::broken::Broken;

#[test]
fn every_mistake_is_told_once_and_in_its_file() {
    let broken = Broken::new();
    for name in [
        "compose-includes-a-wrong-part",
        "compose-circle",
        "compose-include-is-a-word",
        "compose-parameters",
        "compose-foreach",
        "compose-repeat",
        "compose-when",
    ] {
        let told = broken.check(name);
        assert!(told.starts_with("exit code 2\n"), "{name}: {told}");
        assert_told(name, &told);
    }
}

#[test]
fn overlays_and_settings_are_files_of_their_own() {
    let broken = Broken::new();
    let right = &["check", "compose-right.yaml"];
    assert!(broken.say(right).starts_with("exit code 0\n"));
    for (name, more) in [
        (
            "compose-overlay",
            &["--overlay", "compose-overlay.yaml"][..],
        ),
        (
            "compose-settings",
            &["--set", "few.qery=select 1", "--set", "params.size=[1]"],
        ),
    ] {
        let told = broken.say(&[right, more].concat());
        assert!(told.starts_with("exit code 2\n"), "{name}: {told}");
        assert_told(name, &told);
    }
}
