//! The command that goes on with an interrupted run: the very same one.

use std::path::Path;

/// The command line of this process, as a shell reads it.
pub(super) fn command() -> String {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    // Found by name or by path, just as it was this time.
    let name = Path::new(&program)
        .file_name()
        .map_or_else(|| program.clone(), |name| name.display().to_string());
    let first = if program.contains('/') { program } else { name };
    std::iter::once(first)
        .chain(words)
        .map(|word| quoted(&word))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || "-_./:=,@%+~".contains(character);
    if !word.is_empty() && !word.starts_with('~') && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("sft.steps=3"), "sft.steps=3");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted("{a: 1}"), "'{a: 1}'");
        assert_eq!(quoted(""), "''");
    }
}
