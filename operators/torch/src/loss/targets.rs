//! What the loss of each token needs beside its log-probability.

use engine_core::error::ModelError;
use engine_core::policy::{Loss, PolicyLoss, RatioLevel, Surrogate, TrainSequence};
use tch::{Device, Kind, Tensor};

use crate::device::upload;

/// Completion tokens of a micro-batch that carry loss, sequence after sequence. All tensors are `[n]`.
#[derive(Debug)]
pub(crate) struct TokenTargets {
    pub(super) tokens: Tensor,
    pub(super) weights: Tensor,
    pub(super) advantages: Tensor,
    /// Absent when no sequence of the batch has any.
    pub(super) sampler: Option<Tensor>,
    /// Absent when no sequence of the batch has any.
    pub(super) reference: Option<Tensor>,
    /// Absent when no sequence of the batch is imitated.
    pub(super) imitation: Option<Tensor>,
    /// At each token the mean log ratio of its sequence; see [`Self::with_sequence_ratios`].
    pub(super) sequence_log_ratios: Option<Tensor>,
    /// Places of the tokens among all completion tokens; absent when every one carries loss.
    places: Option<Tensor>,
    /// Tokens of each sequence.
    counts: Vec<usize>,
    /// Completion tokens with and without loss.
    completion_tokens: i64,
}

impl TokenTargets {
    /// Targets of sequences in the order of their rows.
    pub(crate) fn new<'a>(
        sequences: impl Iterator<Item = &'a TrainSequence>,
        kind: Kind,
        device: Device,
    ) -> Self {
        let mut list = Lists::default();
        for sequence in sequences {
            list.push(sequence);
        }
        let floats = |values: &[f32]| upload(values, device).to_kind(kind);
        let of_all = |values: &[f32]| (values.len() == list.tokens.len()).then(|| floats(values));
        let has_imitation = list.imitation.iter().any(|weight| *weight != 0.0);
        Self {
            tokens: upload(&list.tokens, device),
            weights: floats(&list.weights),
            advantages: floats(&list.advantages),
            sampler: of_all(&list.sampler),
            reference: of_all(&list.reference),
            imitation: has_imitation.then(|| floats(&list.imitation)),
            sequence_log_ratios: None,
            places: (list.places.len() < list.seen).then(|| upload(&list.places, device)),
            counts: list.counts,
            completion_tokens: list.seen as i64,
        }
    }

    /// The rows of those tokens, of one row for each completion token.
    pub(crate) fn rows(&self, states: Tensor) -> Tensor {
        match &self.places {
            Some(places) => states.index_select(0, places),
            None => states,
        }
    }

    /// The tokens, `[n]`.
    pub(crate) fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// One row for each completion token again, zero where no loss is: the inverse of [`Self::rows`].
    pub(crate) fn spread(&self, rows: Tensor) -> Tensor {
        match &self.places {
            Some(places) => {
                let (options, width) = ((rows.kind(), rows.device()), rows.size()[1]);
                Tensor::zeros([self.completion_tokens, width], options)
                    .index_copy_(0, places, &rows)
            }
            None => rows,
        }
    }

    /// The same with the ratios of whole sequences, from the log-probabilities of all tokens, without gradient.
    pub(crate) fn with_sequence_ratios(&self, logprobs: &Tensor) -> Self {
        let sampler = self
            .sampler
            .as_ref()
            .expect("the caller checks that a policy loss has the sampler's log-probabilities");
        let gaps = logprobs - sampler;
        let mut start = 0;
        let mut means = Vec::new();
        for count in self.counts.iter().filter(|count| **count > 0) {
            let count = *count as i64;
            let mean = gaps.narrow(0, start, count).mean(None::<Kind>);
            means.push(mean.expand([count], false));
            start += count;
        }
        let mut measured = self.narrow(0, start);
        measured.sequence_log_ratios = Some(Tensor::cat(&means, 0));
        measured
    }

    /// The targets of some consecutive tokens.
    pub(crate) fn narrow(&self, start: i64, length: i64) -> Self {
        let part = |x: &Tensor| x.narrow(0, start, length);
        let maybe = |x: &Option<Tensor>| x.as_ref().map(part);
        Self {
            tokens: part(&self.tokens),
            weights: part(&self.weights),
            advantages: part(&self.advantages),
            sampler: maybe(&self.sampler),
            reference: maybe(&self.reference),
            imitation: maybe(&self.imitation),
            sequence_log_ratios: maybe(&self.sequence_log_ratios),
            places: None,
            counts: vec![usize::try_from(length).unwrap_or(0)],
            completion_tokens: length,
        }
    }
}

/// Whether a loss needs [`TokenTargets::with_sequence_ratios`].
pub(crate) fn is_of_sequences(loss: Loss) -> bool {
    matches!(
        loss,
        Loss::Policy(PolicyLoss {
            surrogate: Surrogate::Clipped {
                level: RatioLevel::Sequence | RatioLevel::SequenceToken,
                ..
            },
            ..
        })
    )
}

/// Checks that sequences have what a loss needs.
///
/// # Errors
/// [`ModelError::Input`] with the first sequence that has not.
pub(crate) fn check(sequences: &[TrainSequence], loss: Loss) -> Result<(), ModelError> {
    for (index, sequence) in sequences.iter().enumerate() {
        let tokens = sequence.completion.len();
        let fault = |what: String| Err(ModelError::Input(format!("sequence {index} {what}")));
        let masked = sequence.loss_mask.len();
        if masked != 0 && masked != tokens {
            return fault(format!(
                "has {tokens} completion tokens, but a mask of {masked}"
            ));
        }
        if masked != 0 && !sequence.loss_mask.contains(&true) {
            return fault("has no token that carries loss".to_owned());
        }
        let Loss::Policy(policy) = loss else {
            continue;
        };
        let sampler = sequence.sampler_logprobs.len();
        if sampler != tokens {
            return fault(format!(
                "has {tokens} completion tokens, but {sampler} log-probabilities of the sampler"
            ));
        }
        let reference = sequence.reference_logprobs.len();
        if policy.kl.is_some() && reference != tokens {
            return fault(format!(
                "has {tokens} completion tokens, but {reference} log-probabilities of the reference model"
            ));
        }
        let advantages = &sequence.advantages;
        if advantages.len() != 1 && advantages.len() != tokens {
            return fault(format!(
                "has {tokens} completion tokens, but {} advantages",
                advantages.len()
            ));
        }
        if is_of_sequences(loss) && advantages.windows(2).any(|pair| pair[0] != pair[1]) {
            return fault(
                "has advantages of single tokens, but the loss has the ratio of a whole sequence"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

/// The targets on the host.
#[derive(Default)]
struct Lists {
    tokens: Vec<i64>,
    weights: Vec<f32>,
    advantages: Vec<f32>,
    sampler: Vec<f32>,
    reference: Vec<f32>,
    imitation: Vec<f32>,
    places: Vec<i64>,
    counts: Vec<usize>,
    /// Completion tokens so far, with and without loss.
    seen: usize,
}

impl Lists {
    fn push(&mut self, sequence: &TrainSequence) {
        let before = self.tokens.len();
        for (place, token) in sequence.completion.iter().enumerate() {
            if sequence.loss_mask.get(place) == Some(&false) {
                continue;
            }
            self.tokens.push(i64::from(*token));
            self.weights.push(sequence.token_weight);
            let advantage = match sequence.advantages.as_slice() {
                [] => 0.0,
                [one] => *one,
                each => each[place],
            };
            self.advantages.push(advantage);
            self.sampler.extend(sequence.sampler_logprobs.get(place));
            (self.reference).extend(sequence.reference_logprobs.get(place));
            self.imitation.push(sequence.imitation_weight);
            self.places.push((self.seen + place) as i64);
        }
        self.seen += sequence.completion.len();
        self.counts.push(self.tokens.len() - before);
    }
}
