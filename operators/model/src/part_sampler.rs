//! A loaded model that samples for the rows of one part after the other: what `rollout` and `augment` share.

use std::ops::Range;
use std::sync::Arc;

use engine_core::policy::{GenerationProgress, LoadOptions, Precision, TokenizedPrompt};
use engine_core::{
    FailedRow, ModelError, OperatorError, PartSize, Policy, StageContext, StageView,
};

use crate::processor::{Processor, PromptEncoder};
use crate::prompt_rows::PromptRow;
use crate::sampling::{
    Asked, Sampled, SamplingPlan, check_cancelled, load_encoder, progress, sample_prompts,
};

/// Prompts in a part, on average: enough sequences to fill a batch even with one sample each, few enough that little is lost
/// when a run is broken off.
pub(crate) const SAMPLED_PART: PartSize = PartSize {
    rows: 256,
    bytes: 16 << 20,
};

/// Prompts tokenised together.
const ENCODED_TOGETHER: usize = 64;

/// Bytes of image patches above which the prompts so far are sampled before more are tokenised.
const PATCH_BYTES: usize = 1 << 30;

/// A model, its processor and how to sample from it.
pub(crate) struct PartSampler<'a> {
    policy: Box<dyn Policy>,
    encoder: PromptEncoder,
    plan: SamplingPlan,
    view: &'a dyn StageView,
}

/// What was sampled for the rows of a part.
#[derive(Debug, Default)]
pub(crate) struct PartSamples {
    /// By range of samples, in order of rows and then samples. [`Sampled::prompt`] is the index of the row.
    pub(crate) ranges: Vec<Vec<Sampled>>,
    /// Length of each row's prompt; 0 for a row that failed.
    pub(crate) prompt_tokens: Vec<usize>,
    /// Rows that cannot be asked.
    pub(crate) failed: Vec<FailedRow>,
}

impl PartSamples {
    /// Answers sampled.
    fn finished(&self) -> usize {
        self.ranges.iter().map(Vec::len).sum()
    }

    /// Tokens sampled.
    pub(crate) fn tokens(&self) -> u64 {
        let sampled = self.ranges.iter().flatten();
        sampled
            .map(|answer| answer.completion.token_ids.len() as u64)
            .sum()
    }
}

impl<'a> PartSampler<'a> {
    /// Loads the model of an input port.
    ///
    /// # Errors
    /// When it is not there or cannot be loaded.
    pub(crate) fn load(
        port: &str,
        precision: Precision,
        plan: SamplingPlan,
        context: &StageContext<'_>,
        view: &'a dyn StageView,
    ) -> Result<Self, OperatorError> {
        let folder = view.model_folder(port)?;
        let encoder = load_encoder(&folder)?;
        let options = LoadOptions {
            precision,
            training: None,
        };
        let policy = context.backend()?.load(&folder, &options)?;
        Ok(Self {
            policy,
            encoder,
            plan,
            view,
        })
    }

    /// The model's processor.
    pub(crate) fn processor(&self) -> &Processor {
        self.encoder.processor()
    }

    /// Samples for the rows of a part, all together as far as their images allow. A row whose prompt the model cannot take
    /// fails by itself.
    ///
    /// # Errors
    /// When the model or the store fails, or the run was asked to stop.
    pub(crate) fn sample(
        &mut self,
        rows: &[PromptRow],
        ranges: &[Range<u32>],
    ) -> Result<PartSamples, OperatorError> {
        let mut samples = PartSamples {
            ranges: ranges.iter().map(|_| Vec::new()).collect(),
            prompt_tokens: vec![0; rows.len()],
            failed: Vec::new(),
        };
        let (mut ready, mut bytes) = (Vec::new(), 0);
        for (group, together) in rows.chunks(ENCODED_TOGETHER).enumerate() {
            check_cancelled(self.view)?;
            let together: Vec<&PromptRow> = together.iter().collect();
            let prompts = self.encoder.encode_each(&together, self.view)?;
            for (place, prompt) in prompts.into_iter().enumerate() {
                let row = group * ENCODED_TOGETHER + place;
                match prompt.and_then(|prompt| self.fits(&rows[row], prompt)) {
                    Ok(prompt) => {
                        samples.prompt_tokens[row] = prompt.token_ids.len();
                        bytes += patch_bytes(&prompt);
                        ready.push((row, prompt));
                    }
                    Err(OperatorError::Data(error)) => {
                        samples.failed.push(FailedRow { row, error });
                    }
                    Err(error) => return Err(error),
                }
            }
            if bytes > PATCH_BYTES {
                self.sample_ready(rows, std::mem::take(&mut ready), ranges, &mut samples)?;
                bytes = 0;
            }
        }
        self.sample_ready(rows, ready, ranges, &mut samples)?;
        Ok(samples)
    }

    fn fits(
        &self,
        row: &PromptRow,
        prompt: Arc<TokenizedPrompt>,
    ) -> Result<Arc<TokenizedPrompt>, OperatorError> {
        let room = self.plan.max_new_tokens as usize;
        match self.policy.check_prompt(&prompt, room) {
            Ok(()) => Ok(prompt),
            Err(ModelError::Input(message)) => Err(row.fault(&message)),
            Err(error) => Err(error.into()),
        }
    }

    fn sample_ready(
        &mut self,
        rows: &[PromptRow],
        ready: Vec<(usize, Arc<TokenizedPrompt>)>,
        ranges: &[Range<u32>],
        samples: &mut PartSamples,
    ) -> Result<(), OperatorError> {
        if ready.is_empty() {
            return Ok(());
        }
        let places: Vec<usize> = ready.iter().map(|(row, _)| *row).collect();
        let asked: Vec<Asked<'_>> = ready
            .into_iter()
            .map(|(row, prompt)| Asked {
                row: &rows[row],
                prompt,
            })
            .collect();
        let (finished, tokens) = (samples.finished(), samples.tokens());
        let per_row: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        let view = self.view;
        let mut tell = |reached: GenerationProgress| {
            let done = (finished + reached.sequences) / per_row.max(1);
            let total = rows.len() as u64;
            let tokens = tokens + reached.tokens as u64;
            view.event(progress("rows", done as u64, total, tokens, String::new()));
        };
        let sampled = sample_prompts(
            &mut *self.policy,
            self.encoder.processor(),
            &asked,
            ranges,
            &self.plan,
            view,
            &mut tell,
        )?;
        for (range, sampled) in samples.ranges.iter_mut().zip(sampled) {
            range.extend(sampled.into_iter().map(|answer| Sampled {
                prompt: places[answer.prompt],
                ..answer
            }));
        }
        Ok(())
    }
}

fn patch_bytes(prompt: &TokenizedPrompt) -> usize {
    let values = prompt.images.iter().map(|image| image.patches.len());
    values.sum::<usize>() * size_of::<f32>()
}
