//! What makes a completion right: extraction, equality, format, reward. Pure functions, no Arrow.
//!
//! An answer is taken from the `<answer>` block, or where there is none from the last `\\boxed{...}`; a completion
//! without either has the verdict `unparsed`. Cost is linear in the completion and bounded for the answer: an answer
//! that is too large to look at is `timed-out`, which is masked and never a reward of 0.

mod advantage;
mod choice;
mod combine;
mod extract;
mod format;
mod interval;
mod math;
mod numeric;
mod options;
mod outcome;
mod pattern;
mod score;
mod text;
mod verify;

pub use advantage::{
    Advantage, GroupSignal, GroupStatistics, Normalised, STD_EPSILON, Spread, group_advantages,
    group_ranks, group_signal,
};
pub use combine::{agreement, is_settled, reason, together};
pub use extract::{Boxes, ExtractOptions, Extraction, Source, answer, extract_within};
pub use format::{FormatRule, ThinkAnswer};
pub use interval::wilson_interval;
pub use options::{
    ChoiceOptions, CombineOptions, ExactOptions, FormatOptions, MathOptions, NumericOptions,
    RegexOptions, Searched,
};
pub use outcome::{Explanation, GoldError, Judgement, Outcome, Verdict};
pub use score::{
    Ends, Facts, Language, Length, LengthShape, Measured, Overlong, Repetition, Reward,
    ScoreConfig, ScoreError, Script, SqlPart,
};
pub use verify::{NO_ANSWER, Prepared, TOO_LONG, VerifyConfig};
