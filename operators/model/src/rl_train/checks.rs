//! What is refused at plan time: values out of range, and settings that do not go together, each with the fix.

use engine_core::{Fault, PortTypes};

use super::algorithms::Knobs;
use super::config::{Dealt, RlTrain};
use super::{figures, reward};
use crate::faults::ValueFaults;
use crate::{alarms, schedule};

impl RlTrain {
    /// Every value that cannot be used, and every pair of settings that cannot be used together.
    pub(super) fn faults(&self, inputs: &PortTypes) -> Vec<Fault> {
        let mut faults = ValueFaults::default();
        self.algorithm.check_values(&mut faults);
        let mut all = faults
            .or(&["algorithm", self.algorithm.name()], ())
            .err()
            .unwrap_or_default();

        let mut faults = ValueFaults::default();
        self.check_rollouts(&mut faults);
        self.check_learning(&mut faults);
        self.check_combinations(inputs, &mut faults);
        alarms::check(
            &self.alarms,
            &figures::names(&self.score.part_names()),
            &mut faults,
        );
        all.extend(faults.or(&[], ()).err().unwrap_or_default());
        let filter = self.filter.as_ref();
        all.extend(
            filter
                .and_then(|filter| filter.check(self.prompts_per_step).err())
                .unwrap_or_default(),
        );
        all.extend(
            self.kl
                .as_ref()
                .and_then(|kl| kl.check().err())
                .unwrap_or_default(),
        );
        all.extend(self.verify.faults(&["verify"]));
        all.extend(reward::faults(&self.score, inputs));
        all
    }

    fn check_rollouts(&self, faults: &mut ValueFaults) {
        faults.at_least("steps", u64::from(self.steps), 1);
        faults.at_least("prompts-per-step", u64::from(self.prompts_per_step), 1);
        // One answer has nothing to be compared with, unless the algorithm compares with the batch.
        let least = self.recipe().least_answers;
        faults.at_least("samples", u64::from(self.samples), least as u64);
        faults.positive("temperature", self.temperature);
        faults.at_least("max-new-tokens", u64::from(self.max_new_tokens), 1);
        self.keys()
            .check(self.temperature, self.max_new_tokens, faults);
        if !(0.0..=1.0).contains(&self.max_unusable) {
            faults.fault(
                "max-unusable",
                format!(
                    "`max-unusable` is {} and must be between 0 and 1",
                    self.max_unusable
                ),
            );
        }
        faults.at_least("max-concurrent", u64::from(self.max_concurrent), 1);
    }

    fn check_learning(&self, faults: &mut ValueFaults) {
        schedule::check(
            faults,
            self.schedule,
            self.learning_rate,
            self.min_learning_rate,
        );
        let updates = u64::from(self.updates_per_rollout);
        faults.at_least("updates-per-rollout", updates, 1);
        let prompts = u64::from(self.prompts_per_step);
        let (dealt, what) = match self.minibatches {
            Dealt::Samples => (prompts * u64::from(self.samples), "answers"),
            Dealt::Prompts => (prompts, "prompts"),
        };
        if updates > dealt.max(1) {
            let message = format!(
                "`updates-per-rollout: {updates}` deals {dealt} {what} out to more updates than there are {what}: lower it"
            );
            faults.fault("updates-per-rollout", message);
        }
        faults.at_least("epochs", u64::from(self.epochs), 1);
        faults.not_negative("imitation", self.imitation);
        faults.not_negative("entropy-bonus", self.entropy_bonus);
        if let Some(super::Aggregation::TokenSum(sum)) = self.aggregation
            && sum.over == Some(0)
        {
            let message = "`over` is 0 and must be at least 1".to_owned();
            faults.nested("aggregation", "token-sum", message);
        }
        self.training_keys().check(faults);
    }

    fn check_combinations(&self, inputs: &PortTypes, faults: &mut ValueFaults) {
        let knobs = Knobs {
            aggregation: self.aggregation,
            statistics: self.statistics,
            kl: self.kl.as_ref(),
        };
        self.algorithm.check_knobs(&knobs, faults);
        if self.kl.is_none() && inputs.contains_key("reference") {
            let message = "a model is connected to the port `reference` and nothing uses it: set `kl: {coefficient: ...}`, or take the input away";
            faults.fault("kl", message.to_owned());
        }
    }
}
