//! Completions of the command line.

use crate::support::Project;

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    let project = Project::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = project.call(&["completions", shell]).expect(0).stdout;
        for word in ["check", "plan", "run", "export", "graph", "device"] {
            assert!(script.contains(word), "{shell} does not know `{word}`");
        }
    }
    let unknown = project.call(&["completions", "tcsh"]).expect(2);
    assert!(unknown.stderr.contains("fish"), "{}", unknown.stderr);
}
