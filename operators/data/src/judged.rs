//! Which verdicts are judgements. The others (`timed-out`, `failed`) are masked everywhere.

use operators_verdict::Outcome;

/// A condition that holds for usable verdicts, over the column `verdict` of the table `alias`.
pub(crate) fn is_judged(alias: &str) -> String {
    let names: Vec<String> = Outcome::ALL
        .iter()
        .filter(|outcome| outcome.is_usable())
        .map(|outcome| format!("'{}'", outcome.as_str()))
        .collect();
    format!("{alias}.verdict IN ({})", names.join(", "))
}

/// A condition that holds for correct verdicts.
pub(crate) fn is_correct(alias: &str) -> String {
    format!("{alias}.verdict = '{}'", Outcome::Correct.as_str())
}

/// What a verdict says of a rollout: right, not right, or nothing.
pub(crate) fn judgement(verdict: &str) -> Option<bool> {
    if verdict == Outcome::Correct.as_str() {
        return Some(true);
    }
    let outcome = Outcome::ALL
        .iter()
        .find(|outcome| outcome.as_str() == verdict)?;
    outcome.is_usable().then_some(false)
}
