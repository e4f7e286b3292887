//! Which verdicts are judgements, in SQL. The others (`timed-out`, `failed`) are masked everywhere.

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
