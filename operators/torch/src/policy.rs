//! A loaded model with its optimizer state: the back end's implementation of [`Policy`].

use std::path::Path;

use engine_core::error::ModelError;
use engine_core::policy::{
    Completion, GenerationRequest, GenerationSession, GenerationWatch, LoadOptions, Loss,
    LossReport, MemoryDemand, MemoryPlan, ModelInfo, Policy, Precision, SamplingParams,
    SessionLimits, StepReport, TokenizedPrompt, TrainSequence, WeightSet,
};
use tch::{Device, Kind};

use crate::accumulate::{self, Lesson};
use crate::config::ModelConfig;
use crate::cuda::{self, Gpu};
use crate::guard::guarded;
use crate::model::Model;
use crate::optimizer::{AdamW, Gradients};
use crate::parameters::Parameters;
use crate::plan::{self, Regime, Site};
use crate::save::{RawWeight, SmallFiles};
use crate::session::Session;
use crate::{
    completion, deterministic, device, generate, layout, lora, loss, memory, parallel, state, train,
};

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
    /// As they are trained, whichever are in use.
    pub(crate) weights: Parameters,
    pub(crate) training: Option<Training>,
    in_use: WeightSet,
    /// The weights in use, if they are others.
    others: Option<Parameters>,
    small_files: SmallFiles,
    info: ModelInfo,
    /// The decoder of a GPU, once it was used.
    gpu: Option<Gpu>,
}

/// What a model that is trained has beside its weights.
#[derive(Debug)]
pub(crate) struct Training {
    pub(crate) gradients: Gradients,
    pub(crate) optimizer: AdamW,
    passes: Passes,
}

/// How micro-batches are run.
#[derive(Clone, Copy, Debug)]
struct Passes {
    recompute: bool,
    micro_batch_tokens: Option<usize>,
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
        if let Some(training) = &options.training {
            deterministic::set(place.device, training.deterministic)?;
        }
        let weights = Parameters::load(
            layout::parameters(&config),
            folder,
            options.training.as_ref(),
            kind,
            place.device,
        )?;
        let training = match &options.training {
            Some(options) => Some(Training {
                gradients: Gradients::default(),
                optimizer: AdamW::new(options, &weights)?,
                passes: Passes {
                    recompute: options.recompute,
                    micro_batch_tokens: options.micro_batch_tokens,
                },
            }),
            None => None,
        };
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
            in_use: WeightSet::Current,
            others: None,
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
            Model::new(
                config,
                self.weights_in_use(),
                self.model.kind,
                self.place.device,
            )
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
    /// What is generated with, scored with and saved.
    pub(crate) fn weights_in_use(&self) -> &Parameters {
        self.others.as_ref().unwrap_or(&self.weights)
    }

    /// # Errors
    /// When the model is not trained, or with other weights in use.
    fn check_training(&self) -> Result<(), ModelError> {
        if self.training.is_none() {
            return Err(not_training());
        }
        if self.in_use != WeightSet::Current {
            return Err(ModelError::Input(
                "training goes on from the current weights: take these first".to_owned(),
            ));
        }
        Ok(())
    }

    /// A set of weights other than the current ones.
    fn other_weights(&self, set: WeightSet) -> Result<Option<Parameters>, ModelError> {
        let missing = |what: &str| ModelError::Input(what.to_owned());
        match set {
            WeightSet::Current => Ok(None),
            WeightSet::Averaged => {
                let training = self.training.as_ref().ok_or_else(not_training)?;
                let averaged = tch::no_grad(|| training.optimizer.averaged(&self.weights));
                averaged.map(Some).ok_or_else(|| {
                    missing("the model was loaded without `averaging`: it keeps no average")
                })
            }
            WeightSet::Base => {
                let lora = self.weights.lora.as_ref().ok_or_else(|| {
                    missing(
                        "the model was loaded without `lora`: it has no weights without adapters",
                    )
                })?;
                let tensors = lora.bases(&self.weights.tensors);
                Ok(Some(self.weights.with(tensors)))
            }
        }
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

/// Bytes of a GPU that are there for a policy: what is free, and what it holds already.
fn device_bytes(site: Site<'_>, regime: Option<Regime>) -> Result<u64, ModelError> {
    let (free, _) = cuda::device_memory()?;
    let site = Site {
        available: u64::MAX,
        ..site
    };
    let held = plan::plan(site, regime, &MemoryDemand::default())?;
    Ok(free + held.peak())
}

/// The error of a training call on a model that was loaded for inference.
fn not_training() -> ModelError {
    ModelError::Input("the model was loaded without training options".to_owned())
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
        watch: &mut dyn GenerationWatch,
    ) -> Result<Vec<Completion>, ModelError> {
        guarded(|| {
            if !self.open_gpu()? {
                return generate::generate(&|| self.replicas(), requests, params, watch);
            }
            let gpu = self.gpu.as_mut().expect("it was just opened");
            cuda::generate(gpu, &self.model, requests, params, watch)
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
            let training = self.training.as_ref();
            let asked = training.and_then(|training| training.passes.micro_batch_tokens);
            let batches = completion::micro_batches(&self.model, sequences, asked)?;
            let mut result = vec![Vec::new(); sequences.len()];
            parallel::run(
                self.replicas(),
                batches.len(),
                |model, job, _| train::score(model, &batches[job], sequences),
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
        self.check_training()?;
        let workers: Vec<(Model, Parameters)> = (self.replicas().into_iter())
            .map(|model| (model, self.weights.share()))
            .collect();
        let training = self.training.as_mut().ok_or_else(not_training)?;
        loss::check(sequences, loss)?;
        guarded(|| {
            let asked = training.passes.micro_batch_tokens;
            let batches = completion::micro_batches(&self.model, sequences, asked)?;
            let lesson = Lesson {
                batches: &batches,
                sequences,
                loss,
                recompute: training.passes.recompute,
            };
            let report = accumulate::learn(workers, lesson, &mut training.gradients);
            cuda::note_memory(self.place.device);
            report
        })
    }

    fn optimizer_step(&mut self, learning_rate: f64) -> Result<StepReport, ModelError> {
        self.check_training()?;
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

    fn use_weights(&mut self, weights: WeightSet) -> Result<(), ModelError> {
        if weights == self.in_use {
            return Ok(());
        }
        let others = guarded(|| self.other_weights(weights))?;
        // It may hold addresses of the weights that were in use.
        self.release_generation();
        self.others = others;
        self.in_use = weights;
        self.model = Model::new(
            self.model.config.clone(),
            self.weights_in_use(),
            self.model.kind,
            self.place.device,
        );
        Ok(())
    }

    fn release_generation(&mut self) {
        // On the CPU a call keeps nothing beyond its end.
        if let Some(gpu) = &self.gpu {
            let released = guarded(|| gpu.release());
            if let Err(error) = released {
                tracing::debug!(%error, "memory of generation was kept");
            }
        }
    }

    fn plan_memory(&self, demand: &MemoryDemand) -> Result<MemoryPlan, ModelError> {
        let regime = self.training.as_ref().map(|training| {
            let (optimizer, average) = training.optimizer.bytes(&self.weights);
            Regime {
                recompute: training.passes.recompute,
                micro_batch_tokens: training.passes.micro_batch_tokens,
                lora: self.weights.lora.is_some(),
                gradients: Gradients::bytes(&self.weights),
                optimizer,
                average,
            }
        });
        let mut site = Site {
            model: &self.model,
            weights: &self.weights,
            threads: self.place.threads.max(1),
            available: memory::on_machine(),
        };
        guarded(|| {
            if self.place.device.is_cuda() {
                site.threads = 1;
                site.available = device_bytes(site, regime)?;
            }
            plan::plan(site, regime, demand)
        })
    }

    fn peak_memory(&self) -> u64 {
        if self.place.device.is_cuda() {
            cuda::note_memory(self.place.device)
        } else {
            memory::peak()
        }
    }

    fn save_adapter(&self, folder: &Path) -> Result<(), ModelError> {
        let lora = self.weights.lora.as_ref();
        let lora = lora.filter(|_| self.in_use != WeightSet::Base);
        let lora = lora
            .ok_or_else(|| ModelError::Input("the weights in use have no adapters".to_owned()))?;
        guarded(|| lora::save(folder, lora, self.weights_in_use()))
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        guarded(|| {
            let weights: Vec<RawWeight> = self
                .weights_in_use()
                .own()
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
        self.check_training()?;
        let training = self.training.as_mut().ok_or_else(not_training)?;
        training.gradients = Gradients::default();
        guarded(|| state::read(folder, &mut training.optimizer, &mut self.weights))
    }
}
