//! Losses and gradients against TRL's and PyTorch's own code, in 64 bits (`tests/golden/rl/make.py`).

use std::collections::BTreeMap;
use std::sync::Arc;

use engine_core::policy::{
    KlEstimator, KlPenalty, Loss, LossReport, PolicyLoss, RatioLevel, Surrogate, TokenizedPrompt,
    TrainSequence,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::{Tally, TokenTargets, check, is_of_sequences, weighted_loss};

const GOLDEN: &str = include_str!("../../../../tests/golden/rl/losses.json");
const DEVICE: Device = Device::Cpu;

#[derive(Deserialize)]
struct Golden {
    lengths: Vec<usize>,
    most_tokens: usize,
    logits: Vec<Vec<Vec<f64>>>,
    tokens: Vec<Vec<u32>>,
    sampler: Vec<Vec<f32>>,
    reference: Vec<Vec<f32>>,
    advantages: Vec<f32>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    loss: f64,
    gradient: Vec<Vec<Vec<f64>>>,
}

/// How the tokens' losses are added up.
#[derive(Clone, Copy)]
enum Aggregation {
    SequenceMean,
    TokenMean,
    /// The sum over the most tokens that a completion can have, and over sequences.
    Constant,
}

impl Golden {
    fn read() -> Self {
        serde_json::from_str(GOLDEN).unwrap()
    }

    fn sequences(&self, aggregation: Aggregation) -> Vec<TrainSequence> {
        let total: usize = self.lengths.iter().sum();
        let sequence = |(index, count): (usize, &usize)| {
            let share = match aggregation {
                Aggregation::SequenceMean => self.lengths.len() * count,
                Aggregation::TokenMean => total,
                Aggregation::Constant => self.lengths.len() * self.most_tokens,
            };
            TrainSequence {
                prompt: Arc::new(TokenizedPrompt::default()),
                completion: self.tokens[index][..*count].to_vec(),
                token_weight: 1.0 / share as f32,
                advantages: vec![self.advantages[index]],
                sampler_logprobs: self.sampler[index][..*count].to_vec(),
                reference_logprobs: self.reference[index][..*count].to_vec(),
                ..TrainSequence::default()
            }
        };
        self.lengths.iter().enumerate().map(sequence).collect()
    }

    /// Rows of the tokens that count, sequence after sequence.
    fn rows(&self, of: &[Vec<Vec<f64>>]) -> Tensor {
        let rows: Vec<f64> = (of.iter().zip(&self.lengths))
            .flat_map(|(rows, count)| rows[..*count].iter().flatten().copied())
            .collect();
        Tensor::from_slice(&rows).view([-1, self.logits[0][0].len() as i64])
    }
}

/// Loss and gradient by the logits, with tokens taken in chunks as the head takes them.
fn run(logits: &Tensor, sequences: &[TrainSequence], loss: Loss) -> (LossReport, Tensor) {
    check(sequences, loss).unwrap();
    let leaf = logits.copy().set_requires_grad(true);
    let distribution = leaf.log_softmax(-1, None);
    let mut targets = TokenTargets::new(sequences.iter(), Kind::Double, DEVICE);
    let rows = targets.rows(distribution);
    let picked = rows.gather(1, &targets.tokens.unsqueeze(1), false);
    let logprobs = picked.squeeze_dim(1);
    let entropies = -(rows.exp() * &rows).sum_dim_intlist(-1_i64, false, None::<Kind>);
    if is_of_sequences(loss) {
        targets = targets.with_sequence_ratios(&logprobs.detach());
    }
    let count = rows.size()[0];
    let mut sum = Tensor::zeros([], (Kind::Double, DEVICE));
    let mut tallies = Vec::new();
    for start in (0..count).step_by(4) {
        let length = 4.min(count - start);
        let part = targets.narrow(start, length);
        let of_part = |x: &Tensor| x.narrow(0, start, length);
        let (value, tally) = weighted_loss(&of_part(&logprobs), &of_part(&entropies), &part, loss);
        sum += value;
        tallies.push(tally);
    }
    let gradient = Tensor::run_backward(&[&sum], &[&leaf], false, false).remove(0);
    (Tally::report(&tallies, count as usize), gradient)
}

fn clipped(clip_low: f64, clip_high: f64) -> PolicyLoss {
    let Loss::Policy(loss) = Loss::clipped(clip_low, clip_high) else {
        unreachable!("it is one")
    };
    loss
}

fn with_kl(estimator: KlEstimator) -> PolicyLoss {
    PolicyLoss {
        kl: Some(KlPenalty {
            coefficient: 0.05,
            estimator,
        }),
        ..clipped(0.2, 0.28)
    }
}

fn of_sequences(level: RatioLevel) -> PolicyLoss {
    PolicyLoss {
        surrogate: Surrogate::Clipped {
            clip_low: 0.1,
            clip_high: 0.15,
            level,
            ratio_cap: None,
            dual_clip: None,
        },
        ..clipped(0.0, 0.0)
    }
}

fn bounded(ratio_cap: Option<f64>, dual_clip: Option<f64>) -> PolicyLoss {
    PolicyLoss {
        surrogate: Surrogate::Clipped {
            clip_low: 0.2,
            clip_high: 0.28,
            level: RatioLevel::Token,
            ratio_cap,
            dual_clip,
        },
        ..clipped(0.0, 0.0)
    }
}

fn cut_weight(clip_low: f64, clip_high: f64) -> PolicyLoss {
    PolicyLoss {
        surrogate: Surrogate::CutWeight {
            clip_low,
            clip_high,
        },
        ..clipped(0.0, 0.0)
    }
}

#[test]
fn each_algorithm_has_the_loss_and_gradient_of_the_reference() {
    use Aggregation::{Constant, SequenceMean, TokenMean};
    let golden = Golden::read();
    let with_bonus = PolicyLoss {
        entropy_bonus: 0.01,
        ..clipped(0.2, 0.28)
    };
    let cases = [
        ("grpo", SequenceMean, clipped(0.2, 0.28)),
        ("grpo, ratio cap", SequenceMean, bounded(Some(1.35), None)),
        ("grpo, k1", SequenceMean, with_kl(KlEstimator::K1)),
        ("grpo, k2", SequenceMean, with_kl(KlEstimator::K2)),
        ("grpo, k3", SequenceMean, with_kl(KlEstimator::K3)),
        ("grpo, imitation", SequenceMean, clipped(0.2, 0.28)),
        ("dapo", TokenMean, clipped(0.2, 0.28)),
        ("dapo, entropy", TokenMean, with_bonus),
        ("dapo, dual clip", TokenMean, bounded(None, Some(1.3))),
        ("dr-grpo", Constant, clipped(0.2, 0.28)),
        ("gspo", SequenceMean, of_sequences(RatioLevel::Sequence)),
        (
            "gspo-token",
            SequenceMean,
            of_sequences(RatioLevel::SequenceToken),
        ),
        ("cispo", TokenMean, cut_weight(1.0, 0.28)),
        ("reinforce", TokenMean, clipped(1.0, 1e9)),
    ];
    assert_eq!(cases.len(), golden.cases.len());
    let logits = golden.rows(&golden.logits);
    for (name, aggregation, loss) in cases {
        let mut sequences = golden.sequences(aggregation);
        if name == "grpo, imitation" {
            let is_right = |sequence: &TrainSequence| sequence.advantages[0] > 0.0;
            let tokens: usize = (sequences.iter().filter(|sequence| is_right(sequence)))
                .map(|sequence| sequence.completion.len())
                .sum();
            for sequence in &mut sequences {
                sequence.imitation_weight = if is_right(sequence) {
                    0.1 / tokens as f32
                } else {
                    0.0
                };
            }
        }
        let (report, gradient) = run(&logits, &sequences, Loss::Policy(loss));
        let expected = &golden.cases[name];
        assert!(
            (report.loss - expected.loss).abs() < 1e-6,
            "{name}: {} {}",
            report.loss,
            expected.loss
        );
        let gap = (gradient - golden.rows(&expected.gradient)).abs().max();
        assert!(gap.double_value(&[]) < 1e-6, "{name}: {gap:?}");
        if name == "grpo, ratio cap" || name == "dapo, dual clip" {
            assert!(report.capped > 0, "{name}: the bound is not met");
        }
    }
}

#[test]
fn the_report_counts_what_the_tensors_say() {
    let golden = Golden::read();
    let sequences = golden.sequences(Aggregation::TokenMean);
    let logits = golden.rows(&golden.logits);
    let (report, _) = run(&logits, &sequences, Loss::clipped(0.2, 0.28));
    let distribution = logits.log_softmax(-1, None);
    let (mut low, mut high, mut place) = (0, 0, 0);
    let (mut smallest, mut largest, mut kl) = (f64::INFINITY, 0.0_f64, 0.0);
    for sequence in &sequences {
        for (index, token) in sequence.completion.iter().enumerate() {
            let logprob = distribution.double_value(&[place, i64::from(*token)]);
            let ratio = (logprob - f64::from(sequence.sampler_logprobs[index])).exp();
            (smallest, largest) = (smallest.min(ratio), largest.max(ratio));
            low += usize::from(ratio < 0.8 && sequence.advantages[0] < 0.0);
            high += usize::from(ratio > 1.28 && sequence.advantages[0] > 0.0);
            let gap = logprob - f64::from(sequence.reference_logprobs[index]);
            kl += (-gap).exp() - 1.0 + gap;
            place += 1;
        }
    }
    assert!(low > 0 && high > 0);
    assert_eq!((report.clipped_low, report.clipped_high), (low, high));
    let (reported_low, reported_high) = report.ratio_range.unwrap();
    assert!((reported_low - smallest).abs() < 1e-9 && (reported_high - largest).abs() < 1e-9);
    assert!((report.kl_sum - kl).abs() < 1e-9);
    assert_eq!(report.tokens, place as usize);
}

#[test]
fn masked_tokens_have_no_loss_no_gradient_and_no_share_in_a_sequence() {
    let golden = Golden::read();
    let logits = golden.rows(&golden.logits);
    for loss in [
        Loss::CrossEntropy,
        Loss::clipped(0.2, 0.28),
        Loss::Policy(of_sequences(RatioLevel::Sequence)),
    ] {
        // The masked tokens of one are missing in the other.
        let mut masked = golden.sequences(Aggregation::TokenMean);
        let mut cut = masked.clone();
        for (masked, cut) in masked.iter_mut().zip(&mut cut) {
            if masked.completion.len() > 2 {
                masked.loss_mask = (0..masked.completion.len()).map(|i| i != 1).collect();
                cut.completion.remove(1);
                cut.sampler_logprobs.remove(1);
                cut.reference_logprobs.remove(1);
            }
        }
        let kept: Vec<i64> = (masked.iter())
            .flat_map(|sequence| match sequence.loss_mask.as_slice() {
                [] => vec![true; sequence.completion.len()],
                mask => mask.to_vec(),
            })
            .enumerate()
            .filter_map(|(place, kept)| kept.then_some(place as i64))
            .collect();
        let kept = Tensor::from_slice(&kept);
        let (of_masked, gradient) = run(&logits, &masked, loss);
        let (of_cut, expected) = run(&logits.index_select(0, &kept), &cut, loss);
        assert!((of_masked.loss - of_cut.loss).abs() < 1e-12);
        assert_eq!(of_masked.tokens, of_cut.tokens);
        let at_kept = gradient.index_select(0, &kept);
        assert!((at_kept - expected).abs().max().double_value(&[]) < 1e-12);
        let elsewhere = gradient.index_fill(0, &kept, 0.0).abs().max();
        assert_eq!(elsewhere.double_value(&[]), 0.0);
    }
}

#[test]
fn what_a_loss_needs_and_has_not_is_named() {
    let golden = Golden::read();
    let fault = |change: fn(&mut TrainSequence), loss: Loss| {
        let mut sequences = golden.sequences(Aggregation::TokenMean);
        change(&mut sequences[2]);
        check(&sequences, loss).unwrap_err().to_string()
    };
    let grpo = Loss::clipped(0.2, 0.28);
    let no_sampler = fault(|sequence| sequence.sampler_logprobs.clear(), grpo);
    assert!(no_sampler.contains("sequence 2 has 4 completion tokens, but 0 log"));
    let no_reference = fault(
        |sequence| sequence.reference_logprobs.clear(),
        Loss::Policy(with_kl(KlEstimator::K3)),
    );
    assert!(no_reference.contains("reference"), "{no_reference}");
    let advantages = fault(|sequence| sequence.advantages.clear(), grpo);
    assert!(advantages.contains("0 advantages"), "{advantages}");
    let each = fault(
        |sequence| sequence.advantages = vec![1.0, 2.0, 1.0, 1.0],
        Loss::Policy(of_sequences(RatioLevel::Sequence)),
    );
    assert!(each.contains("whole sequence"), "{each}");
    let mask = fault(|sequence| sequence.loss_mask = vec![true], grpo);
    assert!(mask.contains("a mask of 1"), "{mask}");
    let empty = fault(|sequence| sequence.loss_mask = vec![false; 4], grpo);
    assert!(empty.contains("no token"), "{empty}");
}
