//! The numbers of a step: those of the `metrics` table, and those that only who watches sees.
//!
//! The table has nothing that differs between equal runs, so times and memory are not in it.

use engine_core::policy::{KlEstimator, LossReport};

use super::advantages::penalties;
use super::group::{Fate, Group, Rollout};
use crate::rl_train::filter::Filter;

/// Numbers that every step or some have, apart from those named after parts of the reward.
const NAMES: [&str; 57] = [
    "prompts",
    "groups_kept",
    "groups_all_right",
    "groups_all_wrong",
    "groups_too_few",
    "groups_easy",
    "groups_hard",
    "groups_trained",
    "share_all_right",
    "share_all_wrong",
    "pass_rate_0",
    "pass_rate_below_25",
    "pass_rate_below_50",
    "pass_rate_below_75",
    "pass_rate_below_100",
    "pass_rate_100",
    "groups_buffered",
    "groups_stale",
    "staleness_mean",
    "staleness_max",
    "rounds",
    "groups_surplus",
    "groups_missing",
    "updates",
    "learning_rate",
    "tokens",
    "reward",
    "reward_std",
    "accuracy",
    "format",
    "unusable",
    "completion_tokens",
    "completion_tokens_max",
    "completion_tokens_right",
    "completion_tokens_right_max",
    "completion_tokens_wrong",
    "completion_tokens_wrong_max",
    "truncated",
    "sampler_entropy",
    "kl_penalty",
    "advantage_min",
    "advantage_max",
    "trained_sequences",
    "trained_tokens",
    "trained_truncated",
    "masked_truncated",
    "loss",
    "grad_norm",
    "entropy",
    "clip_low",
    "clip_high",
    "capped",
    "ratio_min",
    "ratio_max",
    "kl",
    "logprob_gap_mean",
    "logprob_gap_max",
];

/// Parts of the reward whose mean has the name of the part alone.
const PLAIN_PARTS: usize = 2;

/// Names of all numbers that a step can have.
pub(super) fn names(parts: &[String]) -> Vec<String> {
    let parts = parts.iter().skip(PLAIN_PARTS).map(|part| part_name(part));
    NAMES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(parts)
        .collect()
}

fn part_name(part: &str) -> String {
    format!("reward_{part}")
}

/// What the updates of a step saw and did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Updates {
    pub(super) count: usize,
    pub(super) sequences: usize,
    pub(super) report: LossReport,
    /// What the first one saw, before the weights moved.
    pub(super) first: LossReport,
    /// Largest gradient norm of the updates.
    pub(super) grad_norm: f64,
}

/// Everything that the numbers of a step are taken of.
pub(super) struct Observed<'a> {
    pub(super) filter: &'a Filter,
    pub(super) part_names: &'a [String],
    /// Groups that the step sampled.
    pub(super) sampled: Vec<&'a Group>,
    /// All groups with a row in this step, those from the buffer too.
    pub(super) recorded: Vec<&'a Group>,
    /// Groups that wait for a later step.
    pub(super) buffered: usize,
    /// Steps with updates before this one.
    pub(super) policy_version: u64,
    pub(super) rounds: u32,
    /// Groups that a full set would have had beside.
    pub(super) missing: usize,
    pub(super) updates: Updates,
    pub(super) learning_rate: f64,
}

/// The numbers of a step in the making.
#[derive(Default)]
struct Figures(Vec<(String, f64)>);

impl Figures {
    fn add(&mut self, name: &str, value: f64) {
        self.0.push((name.to_owned(), value));
    }

    fn count(&mut self, name: &str, count: usize) {
        self.add(name, count as f64);
    }

    /// A number that not every step has.
    fn optional(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// Mean and largest of some lengths.
    fn lengths<'r>(&mut self, name: &str, rollouts: impl Iterator<Item = &'r Rollout>) {
        let lengths: Vec<f64> = rollouts.map(|rollout| rollout.tokens() as f64).collect();
        self.optional(name, mean(lengths.iter().copied()));
        self.optional(&format!("{name}_max"), lengths.into_iter().reduce(f64::max));
    }
}

impl Observed<'_> {
    /// The numbers of the `metrics` table. Those that have no value in a step, such as the loss of a step without signal, are
    /// left out.
    pub(super) fn figures(&self) -> Vec<(String, f64)> {
        let mut figures = Figures::default();
        self.groups(&mut figures);
        self.filtered(&mut figures);
        figures.count("updates", self.updates.count);
        figures.add("learning_rate", self.learning_rate);
        self.rollouts(&mut figures);
        self.learnt(&mut figures);
        self.losses(&mut figures);
        figures.0
    }

    fn groups(&self, figures: &mut Figures) {
        let mut histogram = [0_usize; 6];
        for counts in self.sampled.iter().map(|group| group.counts()) {
            let place = match (counts.right, counts.usable) {
                (_, 0) => continue,
                (0, _) => 0,
                (right, usable) if right == usable => 5,
                (right, usable) => 1 + 4 * right / usable,
            };
            histogram[place] += 1;
        }
        let fate = |fate: Fate| count(&self.sampled, fate);
        let dropped = fate(Fate::Easy) + fate(Fate::Hard) + fate(Fate::TooFew);
        let comparable = |group: &&&Group| group.counts().usable > 1;
        let all = |is_right: bool| {
            let groups = self.sampled.iter().filter(comparable);
            let counts = groups.map(|group| group.counts());
            counts
                .filter(|counts| counts.right == if is_right { counts.usable } else { 0 })
                .count()
        };
        let prompts = self.sampled.len();
        figures.count("prompts", prompts);
        figures.count("groups_kept", prompts - dropped);
        figures.count("groups_all_right", all(true));
        figures.count("groups_all_wrong", all(false));
        figures.count("groups_too_few", fate(Fate::TooFew));
        figures.count("groups_easy", fate(Fate::Easy));
        figures.count("groups_hard", fate(Fate::Hard));
        figures.count("groups_trained", count(&self.recorded, Fate::Trained));
        figures.add("share_all_right", histogram[5] as f64 / prompts as f64);
        figures.add("share_all_wrong", histogram[0] as f64 / prompts as f64);
        let names = NAMES.iter().filter(|name| name.starts_with("pass_rate_"));
        for (name, count) in names.zip(histogram) {
            figures.count(name, count);
        }
    }

    /// What the filter did beside dropping.
    fn filtered(&self, figures: &mut Figures) {
        match self.filter {
            Filter::None | Filter::Drop(_) => {}
            Filter::Buffer(_) => {
                let trained = self
                    .recorded
                    .iter()
                    .filter(|group| group.fate == Fate::Trained);
                let ages: Vec<f64> = trained
                    .map(|group| (self.policy_version - group.origin.policy_version) as f64)
                    .collect();
                figures.count("groups_buffered", self.buffered);
                figures.count("groups_stale", count(&self.recorded, Fate::Stale));
                figures.optional("staleness_mean", mean(ages.iter().copied()));
                figures.optional("staleness_max", ages.into_iter().reduce(f64::max));
            }
            Filter::Resample(_) => {
                figures.add("rounds", f64::from(self.rounds));
                figures.count("groups_surplus", count(&self.sampled, Fate::Surplus));
                figures.count("groups_missing", self.missing);
            }
        }
    }

    /// What was sampled, whether it was learnt from or not.
    fn rollouts(&self, figures: &mut Figures) {
        let all = || self.sampled.iter().flat_map(|group| &group.rollouts);
        let rewards = || all().filter_map(|rollout| rollout.reward.as_ref());
        let part = |index: usize| mean(rewards().map(|reward| reward.parts[index]));
        let total = mean(rewards().map(|reward| reward.total));
        let tokens: usize = all().map(Rollout::tokens).sum();
        figures.count("tokens", tokens);
        figures.optional("reward", total);
        figures.optional(
            "reward_std",
            deviation(rewards().map(|reward| reward.total)),
        );
        for (index, name) in self.part_names.iter().enumerate() {
            let name = match index {
                0 | 1 => name.clone(),
                _ => part_name(name),
            };
            figures.optional(&name, part(index));
        }
        figures.optional(
            "unusable",
            share(all().map(|rollout| rollout.reward.is_none())),
        );
        figures.lengths("completion_tokens", all());
        figures.lengths(
            "completion_tokens_right",
            all().filter(|rollout| rollout.is_right()),
        );
        let wrong = |rollout: &&Rollout| rollout.reward.is_some() && !rollout.is_right();
        figures.lengths("completion_tokens_wrong", all().filter(wrong));
        figures.optional("truncated", share(all().map(Rollout::is_truncated)));
        let entropies = all().flat_map(|rollout| &rollout.completion.entropies);
        figures.optional(
            "sampler_entropy",
            mean(entropies.map(|value| f64::from(*value))),
        );
    }

    /// What was learnt from.
    fn learnt(&self, figures: &mut Figures) {
        let trained = || {
            let groups = self
                .recorded
                .iter()
                .filter(|group| group.fate == Fate::Trained);
            groups.flat_map(|group| &group.rollouts)
        };
        figures.optional(
            "kl_penalty",
            mean(trained().filter_map(|rollout| rollout.reward_kl)),
        );
        let advantages = || trained().flat_map(|rollout| rollout.advantages.iter().copied());
        figures.optional("advantage_min", advantages().reduce(f64::min));
        figures.optional("advantage_max", advantages().reduce(f64::max));
        let is_learnt = |rollout: &&Rollout| !rollout.advantages.is_empty();
        let truncated = trained().filter(|rollout| rollout.is_truncated());
        let learnt = truncated.clone().filter(is_learnt).count();
        let masked = truncated.filter(|rollout| rollout.reward.is_some()).count() - learnt;
        figures.count("trained_sequences", self.updates.sequences);
        figures.count("trained_tokens", self.updates.report.tokens);
        figures.count("trained_truncated", learnt);
        figures.count("masked_truncated", masked);
    }

    /// What the updates saw.
    fn losses(&self, figures: &mut Figures) {
        let Updates { count, report, .. } = &self.updates;
        if *count == 0 || report.tokens == 0 {
            return;
        }
        let tokens = report.tokens as f64;
        figures.add("loss", report.loss / *count as f64);
        figures.add("grad_norm", self.updates.grad_norm);
        figures.add("entropy", report.entropy_sum / tokens);
        figures.add("clip_low", report.clipped_low as f64 / tokens);
        figures.add("clip_high", report.clipped_high as f64 / tokens);
        figures.add("capped", report.capped as f64 / tokens);
        if let Some((low, high)) = report.ratio_range {
            figures.add("ratio_min", low);
            figures.add("ratio_max", high);
        }
        figures.optional("kl", self.divergence());
        // Of the policy that sampled: later updates have moved it on purpose.
        let first = &self.updates.first;
        let gap = (first.tokens > 0).then(|| first.logprob_gap_sum / first.tokens as f64);
        figures.optional("logprob_gap_mean", gap);
        figures.add("logprob_gap_max", first.logprob_gap_max);
    }

    /// The mean divergence of a token from the reference model, where there is one: of the policy that learns where it is a part of
    /// the loss, else of the policy that sampled. The same estimate in both cases.
    fn divergence(&self) -> Option<f64> {
        let groups = self
            .recorded
            .iter()
            .filter(|group| group.fate == Fate::Trained);
        let rollouts = groups.flat_map(|group| &group.rollouts);
        let tokens = self.updates.report.tokens as f64;
        match self.updates.report.kl_sum {
            0.0 => mean(rollouts.flat_map(|rollout| penalties(rollout, KlEstimator::K3))),
            sum => Some(sum / tokens),
        }
    }
}

fn count(groups: &[&Group], fate: Fate) -> usize {
    groups.iter().filter(|group| group.fate == fate).count()
}

/// Mean reward of the answers of some groups; None when none has one.
pub(super) fn mean_reward<'g>(groups: impl Iterator<Item = &'g Group>) -> Option<f64> {
    let rollouts = groups.flat_map(|group| &group.rollouts);
    let rewards = rollouts.filter_map(|rollout| rollout.reward.as_ref());
    mean(rewards.map(|reward| reward.total))
}

fn share(conditions: impl Iterator<Item = bool>) -> Option<f64> {
    mean(conditions.map(|condition| f64::from(u8::from(condition))))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_usize, 0.0), |(count, sum), value| {
        (count + 1, sum + value)
    });
    (count > 0).then(|| sum / count as f64)
}

/// Standard deviation with Bessel's correction; None for fewer than two values.
fn deviation(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut spread = operators_verdict::Spread::default();
    let mut count = 0_usize;
    for value in values {
        spread.add(value);
        count += 1;
    }
    (count > 1).then(|| spread.std())
}
