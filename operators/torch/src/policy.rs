//! A loaded model with its optimizer state: the back end's implementation of [`Policy`].

use std::ops::ControlFlow;
use std::path::Path;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, GenerationProgress, GenerationRequest, GenerationSession, LoadOptions, Loss,
    LossReport, ModelInfo, Policy, Precision, SamplingParams, SessionLimits, StepReport,
    TokenizedPrompt, TrainSequence,
};
use tch::{Device, Kind};

use crate::config::ModelConfig;
use crate::cuda::{self, Gpu};
use crate::guard::guarded;
use crate::model::Model;
use crate::optimizer::{AdamW, Gradients};
use crate::parameters::Parameters;
use crate::save::{RawWeight, SmallFiles};
use crate::session::Session;
use crate::{completion, device, generate, layout, parallel, state, train};

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) device: Device,
    /// Threads of CPU work; a GPU is driven by one.
    pub(crate) threads: usize,
}

/// A model on one device.
#[derive(Debug)]
pub(crate) struct TorchPolicy {
    place: Place,
    pub(crate) model: Model,
    pub(crate) weights: Parameters,
    pub(crate) training: Option<Training>,
    small_files: SmallFiles,
    info: ModelInfo,
    /// The decoder of a GPU, once it was used.
    gpu: Option<Gpu>,
}

/// What a model that is trained has beside its weights.
#[derive(Debug)]
pub(crate) struct Training {
    pub(crate) gradients: Gradients,
    optimizer: AdamW,
}

impl TorchPolicy {
    /// Loads a folder.
    ///
    /// # Errors
    /// When a file or tensor is not as the configuration says.
    pub(crate) fn load(
        folder: &Path,
        options: &LoadOptions,
        place: Place,
    ) -> Result<Self, ModelError> {
        let kind = match options.precision {
            Precision::Float32 => Kind::Float,
            Precision::Bfloat16 => Kind::BFloat16,
        };
        Self::load_as(folder, options, kind, place)
    }

    /// Loads a folder with weights of a given type.
    ///
    /// # Errors
    /// As [`TorchPolicy::load`].
    pub(crate) fn load_as(
        folder: &Path,
        options: &LoadOptions,
        kind: Kind,
        place: Place,
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::read(folder)?;
        let freeze = options
            .training
            .as_ref()
            .map(|training| training.freeze.as_slice());
        let weights = Parameters::load(
            layout::parameters(&config),
            folder,
            freeze,
            kind,
            place.device,
        )?;
        let training = options.training.as_ref().map(|options| Training {
            gradients: Gradients::default(),
            optimizer: AdamW::new(options, &weights),
        });
        let info = ModelInfo {
            family: config.family.name().to_owned(),
            parameters: weights.count(),
            device: device::name(place.device),
        };
        let model = Model::new(config, &weights, kind, place.device);
        Ok(Self {
            place,
            model,
            weights,
            training,
            small_files: SmallFiles::read(folder)?,
            info,
            gpu: None,
        })
    }
}

impl TorchPolicy {
    /// The model once for each thread, on the same weights.
    fn replicas(&self) -> Vec<Model> {
        let model = || {
            let config = self.model.config.clone();
            Model::new(config, &self.weights, self.model.kind, self.place.device)
        };
        let threads = if self.place.device.is_cuda() {
            1
        } else {
            self.place.threads.max(1)
        };
        std::iter::repeat_with(model).take(threads).collect()
    }
}

impl TorchPolicy {
    /// Opens the decoder of the GPU; says whether there is one for this model.
    fn open_gpu(&mut self) -> Result<bool, ModelError> {
        if self.gpu.is_none() {
            match cuda::supports(&self.model) {
                Ok(()) => self.gpu = Some(Gpu::new(&self.model)?),
                Err(reason) if self.place.device.is_cuda() => {
                    tracing::debug!(reason, "the model is decoded by plain operations");
                }
                Err(_) => {}
            }
        }
        Ok(self.gpu.is_some())
    }
}

/// The error of a training call on a model that was loaded for inference.
fn not_training() -> ModelError {
    ModelError::Input("the model was loaded without training options".to_owned())
}

fn check_sampler(sequences: &[TrainSequence]) -> Result<(), ModelError> {
    let unequal = sequences
        .iter()
        .position(|sequence| sequence.sampler_logprobs.len() != sequence.completion.len());
    match unequal {
        Some(index) => Err(ModelError::Input(format!(
            "sequence {index} has {} completion tokens, but {} log-probabilities of the sampler",
            sequences[index].completion.len(),
            sequences[index].sampler_logprobs.len()
        ))),
        None => Ok(()),
    }
}

impl Policy for TorchPolicy {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn check_prompt(
        &self,
        prompt: &TokenizedPrompt,
        max_new_tokens: usize,
    ) -> Result<(), ModelError> {
        guarded(|| self.model.check_prompt(prompt, max_new_tokens).map(|_| ()))
    }

    fn generate(
        &mut self,
        requests: &[GenerationRequest],
        params: &SamplingParams,
        progress: &mut dyn FnMut(GenerationProgress) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>, ModelError> {
        guarded(|| {
            if !self.open_gpu()? {
                return generate::generate(&|| self.replicas(), requests, params, progress);
            }
            let gpu = self.gpu.as_mut().expect("it was just opened");
            cuda::generate(gpu, &self.model, requests, params, progress)
        })
    }

    fn session(
        &mut self,
        limits: SessionLimits,
    ) -> Result<Box<dyn GenerationSession + '_>, ModelError> {
        guarded(|| {
            if !self.open_gpu()? {
                return Ok(
                    Box::new(Session::open(&self.model, self.place.threads, limits)?)
                        as Box<dyn GenerationSession>,
                );
            }
            let gpu = self.gpu.as_mut().expect("it was just opened");
            gpu.session(&self.model, limits)
        })
    }

    fn logprobs(&mut self, sequences: &[TrainSequence]) -> Result<Vec<Vec<f32>>, ModelError> {
        guarded(|| {
            let batches = completion::micro_batches(&self.model, sequences)?;
            let mut result = vec![Vec::new(); sequences.len()];
            parallel::run(
                self.replicas(),
                batches.len(),
                |model, job, _| tch::no_grad(|| completion::score(model, &batches[job], sequences)),
                |(): ()| true,
                |job, values: Vec<f32>| {
                    let mut values = values.into_iter();
                    for (index, _) in &batches[job].rows {
                        let count = sequences[*index].completion.len();
                        result[*index] = values.by_ref().take(count).collect();
                    }
                },
            )?;
            Ok(result)
        })
    }

    fn forward_backward(
        &mut self,
        sequences: &[TrainSequence],
        loss: Loss,
    ) -> Result<LossReport, ModelError> {
        let workers: Vec<(Model, Parameters)> = (self.replicas().into_iter())
            .map(|model| (model, self.weights.share()))
            .collect();
        let training = self.training.as_mut().ok_or_else(not_training)?;
        if matches!(loss, Loss::ClippedSurrogate { .. }) {
            check_sampler(sequences)?;
        }
        guarded(|| {
            let batches = completion::micro_batches(&self.model, sequences)?;
            // The step's gradients change only when every micro-batch has a finite loss.
            let mut gradients = Gradients::default();
            let mut total = LossReport::default();
            parallel::run(
                workers,
                batches.len(),
                |(model, weights), job, _| {
                    train::forward_backward(model, weights, &batches[job], sequences, loss)
                },
                |(): ()| true,
                |_, (report, part)| {
                    total.add(&report);
                    gradients.merge(part);
                },
            )?;
            training.gradients.merge(gradients);
            Ok(total)
        })
    }

    fn optimizer_step(&mut self, learning_rate: f64) -> Result<StepReport, ModelError> {
        let training = self.training.as_mut().ok_or_else(not_training)?;
        guarded(|| {
            let gradients = std::mem::take(&mut training.gradients);
            tch::no_grad(|| {
                training
                    .optimizer
                    .step(&mut self.weights, gradients, learning_rate)
            })
        })
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        guarded(|| {
            let weights: Vec<RawWeight> = self
                .weights
                .list
                .iter()
                .zip(&self.weights.tensors)
                .flat_map(|(parameter, tensor)| RawWeight::from_tensor(parameter, tensor))
                .collect();
            self.small_files.write(&weights, folder)
        })
    }

    fn save_state(&self, folder: &Path) -> Result<(), ModelError> {
        let training = self.training.as_ref().ok_or_else(not_training)?;
        guarded(|| state::write(folder, &training.optimizer, &self.weights))
    }

    fn load_state(&mut self, folder: &Path) -> Result<(), ModelError> {
        let training = self.training.as_mut().ok_or_else(not_training)?;
        training.gradients = Gradients::default();
        guarded(|| state::read(folder, &mut training.optimizer, &mut self.weights))
    }
}
