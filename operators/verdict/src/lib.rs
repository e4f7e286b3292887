//! What makes a completion right: extraction, equality, format, reward. Pure functions, no Arrow.
//!
//! An answer is taken from the `<answer>` block, or where there is none from the last `\\boxed{...}`; a completion
//! without either has the verdict `unparsed`. Cost is linear in the completion and bounded for the answer: an answer
//! that is too large to look at is `timed-out`, which is masked and never a reward of 0.

mod choice;
mod combine;
mod extract;
mod format;
mod math;
mod numeric;
mod options;
mod outcome;
mod pattern;
mod score;
mod text;
mod verify;

pub use extract::{Boxes, ExtractOptions, Source, answer};
pub use format::{FormatRule, ThinkAnswer};
pub use options::{
    ChoiceOptions, CombineOptions, ExactOptions, FormatOptions, MathOptions, NumericOptions,
    RegexOptions, Searched,
};
pub use outcome::{Explanation, GoldError, Outcome, Verdict};
pub use score::{Reward, ScoreConfig, ScoreError};
pub use verify::{Prepared, VerifyConfig};
