//! The judgement of several verifiers together.

use crate::outcome::Outcome;

/// What `all` (or `any`) says, given what each says. A verifier that cannot judge decides nothing, unless all depends on
/// it.
pub(crate) fn together(parts: &[Outcome], all: bool) -> Outcome {
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
pub(crate) fn agreement(parts: &[Outcome], together: Outcome) -> Option<f64> {
    let usable = parts.iter().filter(|outcome| outcome.is_usable()).count();
    let agreeing = parts.iter().filter(|outcome| **outcome == together).count();
    (usable > 0 && together.is_usable()).then(|| agreeing as f64 / usable as f64)
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
}
