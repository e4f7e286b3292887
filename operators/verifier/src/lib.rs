//! Verifiers of every kind behind one door: rules, programs, and models that judge.
//!
//! `verify`, `rl-train`, `augment` and the command `verify` all run a [`VerifyConfig`] through a [`Verifier`], so that a reward
//! in training and a verdict afterwards cannot differ. What rules are is in `operators-verdict`.

mod config;
mod exec;
mod judge;
pub mod program;
mod question;
#[cfg(test)]
mod test_support;
mod verifier;

pub use config::{Several, VerifyConfig};
pub use exec::ExecOptions;
pub use judge::{Conversation, JudgeModel, JudgeOptions};
pub use question::{Judged, Question, question_text};
pub use verifier::Verifier;
