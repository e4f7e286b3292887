//! The judgement of several verifiers together.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::outcome::Outcome;

/// What `all` (or `any`) says, given what each says. A verifier that cannot judge decides nothing, unless all depends on
/// it.
#[must_use]
pub fn together(parts: &[Outcome], all: bool) -> Outcome {
    let has = |outcome| parts.contains(&outcome);
    // The outcome that settles it alone.
    if all {
        for outcome in [
            Outcome::Wrong,
            Outcome::Unparsed,
            Outcome::TimedOut,
            Outcome::Failed,
        ] {
            if has(outcome) {
                return outcome;
            }
        }
        return if parts.is_empty() {
            Outcome::Failed
        } else {
            Outcome::Correct
        };
    }
    for outcome in [
        Outcome::Correct,
        Outcome::TimedOut,
        Outcome::Wrong,
        Outcome::Unparsed,
    ] {
        if has(outcome) {
            return outcome;
        }
    }
    Outcome::Failed
}

/// Share of the verifiers that can judge and say what is said together.
#[must_use]
pub fn agreement(parts: &[Outcome], together: Outcome) -> Option<f64> {
    let usable = parts.iter().filter(|outcome| outcome.is_usable()).count();
    let agreeing = parts.iter().filter(|outcome| **outcome == together).count();
    (usable > 0 && together.is_usable()).then(|| agreeing as f64 / usable as f64)
}

/// Whether nothing that others could say makes an answer correct (of `all`) or keeps it from being correct (of `any`).
#[must_use]
pub fn is_settled(parts: &[Outcome], all: bool) -> bool {
    let settles = |outcome: &Outcome| match outcome {
        Outcome::Correct => !all,
        Outcome::Wrong | Outcome::Unparsed => all,
        Outcome::TimedOut | Outcome::Failed => false,
    };
    parts.iter().any(settles)
}

/// Why several verifiers say what they say: what each says by its name.
pub fn reason<'n, 'r>(
    parts: impl Iterator<Item = ((&'n str, Outcome), &'r Cow<'static, str>)>,
) -> String {
    let mut text = String::new();
    for ((name, outcome), reason) in parts {
        if !text.is_empty() {
            text.push_str("; ");
        }
        let name = name.split(' ').next().unwrap_or(name);
        // Writing to a string cannot fail.
        let _ = write!(text, "{name} {}: {reason}", outcome.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_enough_for_any_and_all_need_all() {
        use Outcome::{Correct, Failed, TimedOut, Unparsed, Wrong};
        assert_eq!(together(&[Correct, Wrong], false), Correct);
        assert_eq!(together(&[Correct, Wrong], true), Wrong);
        assert_eq!(together(&[TimedOut, Wrong], false), TimedOut);
        assert_eq!(together(&[TimedOut, Correct], true), TimedOut);
        assert_eq!(together(&[Failed, Wrong], false), Wrong);
        assert_eq!(together(&[Failed, Failed], false), Failed);
        assert_eq!(together(&[Unparsed, Correct], true), Unparsed);
        assert_eq!(agreement(&[Correct, Wrong, Failed], Correct), Some(0.5));
        assert_eq!(agreement(&[Failed], Failed), None);
    }

    #[test]
    fn what_cannot_change_any_more_is_settled() {
        use Outcome::{Correct, Failed, TimedOut, Unparsed, Wrong};
        assert!(is_settled(&[Wrong, Correct], false) && !is_settled(&[Wrong, TimedOut], false));
        assert!(is_settled(&[Correct, Unparsed], true) && is_settled(&[Failed, Wrong], true));
        assert!(!is_settled(&[Correct, Failed, TimedOut], true) && !is_settled(&[], true));
    }

    #[test]
    fn the_reason_names_each_verifier() {
        let parts = [
            (("math 2", Outcome::Wrong), &Cow::Borrowed("another number")),
            (
                ("exact 1", Outcome::Correct),
                &Cow::Borrowed("the same text"),
            ),
        ];
        assert_eq!(
            reason(parts.into_iter()),
            "math wrong: another number; exact correct: the same text"
        );
    }
}
