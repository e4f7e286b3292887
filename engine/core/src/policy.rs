//! What a language or vision-language model can do for an operator, without naming a tensor.
//!
//! The verbs are coarse enough that no tensor crosses and fine enough that supervised and reinforcement
//! learning are ordinary functions over them. `operators/torch` implements both traits.

mod loss;
mod memory;
mod training;

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

pub use loss::{KlEstimator, KlPenalty, Loss, LossReport, PolicyLoss, RatioLevel, Surrogate};
pub use memory::{MemoryDemand, MemoryPlan};
pub use training::{LoraOptions, Masters, TrainOptions};

/// Number format of a model's weights on its device.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floats: exact reruns on the CPU.
    #[default]
    Float32,
    /// 16-bit brain floats for weights and activations; log-probabilities and losses stay in 32 bits.
    Bfloat16,
}

/// One preprocessed image: normalised pixels cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchedImage {
    /// Pixel values, row-major `[num_patches, patch_width]`, in the order the vision tower expects.
    pub patches: Vec<f32>,
    /// Patches along time, height and width; their product is `num_patches`.
    pub grid_thw: [usize; 3],
}

/// A prompt as the model sees it: token ids with one image placeholder id per merged patch, and the images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizedPrompt {
    /// Token ids of the whole prompt, generation prefix included.
    pub token_ids: Vec<u32>,
    /// Images in the order of their placeholders.
    pub images: Vec<Arc<PatchedImage>>,
}

/// One completion to sample.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// What to continue. Requests that share an `Arc` share one prefill where the backend can.
    pub prompt: Arc<TokenizedPrompt>,
    /// Identity of the prompt in the random stream (see [`crate::seed::prompt_stream`]).
    pub prompt_stream: u64,
    /// Index of the sample among the samples of its prompt.
    pub sample: u32,
}

/// Whether a completion ends with the last of these tokens, all that it has so far.
pub type TokenCheck = dyn Fn(&[u32]) -> bool + Send + Sync;

/// Ends a completion by what it says, for example at a stop string: gets all tokens of a completion so far, after each one.
#[derive(Clone)]
pub struct StopCheck(pub Arc<TokenCheck>);

impl fmt::Debug for StopCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StopCheck")
    }
}

impl PartialEq for StopCheck {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// How to sample. The same request gives the same tokens whatever else is in the batch.
///
/// A token's logits are changed in this order: penalties, forbidden tokens (`allowed_token_ids`, `min_new_tokens`), temperature;
/// then the distribution is truncated by `top_k`, `top_p` and `min_p`, in this order, each applied to what the one before
/// left, renormalised.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 means greedy decoding.
    pub temperature: f64,
    /// Only this many of the most likely tokens are sampled; 0: all.
    pub top_k: usize,
    /// Only the fewest most likely tokens whose probabilities add up to this are sampled (nucleus sampling, Holtzman et al.
    /// 2020); 1: all.
    pub top_p: f64,
    /// Only tokens with at least this share of the largest probability are sampled; 0: all.
    pub min_p: f64,
    /// Divides the positive and multiplies the negative logits of tokens that the prompt or the completion has (CTRL, Keskar
    /// et al. 2019, section 4.1); 1: none.
    pub repetition_penalty: f64,
    /// Taken from the logits of tokens that the completion has; 0: none.
    pub presence_penalty: f64,
    /// Taken from the logits of a token once for each time that the completion has it; 0: none.
    pub frequency_penalty: f64,
    /// Upper limit of completion tokens, the end token included.
    pub max_new_tokens: usize,
    /// Stop tokens cannot be sampled before the completion has this many tokens.
    pub min_new_tokens: usize,
    /// Tokens that end a completion. The end token is kept in the completion.
    pub stop_token_ids: Vec<u32>,
    /// If not empty, only these tokens (and stop tokens among them) can be sampled.
    pub allowed_token_ids: Vec<u32>,
    /// Ends a completion by its tokens, the last one included.
    pub stop_check: Option<StopCheck>,
    /// Seed of the counter-based generator.
    pub seed: u64,
    /// Sequences decoded together; bounds the memory of the key-value cache.
    pub max_concurrent: usize,
    /// Sizes of runs of requests that are decoded apart where results are exact: the completions of a run are then the same
    /// to the last bit whichever other runs are asked for. All runs have the same prompts in the same order. Empty: the
    /// requests are one run.
    pub apart: Vec<usize>,
}

impl Default for SamplingParams {
    /// Samples from the model as it is, one token.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            max_new_tokens: 1,
            min_new_tokens: 0,
            stop_token_ids: Vec::new(),
            allowed_token_ids: Vec::new(),
            stop_check: None,
            seed: 0,
            max_concurrent: 256,
            apart: Vec::new(),
        }
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinishReason {
    /// A stop token was sampled, or the stop check ended it.
    Stop,
    /// `max_new_tokens` was reached.
    #[default]
    Length,
}

impl FinishReason {
    /// The text stored in the `finish_reason` column.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A sampled continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// Sampled token ids, the end token included when there is one.
    pub token_ids: Vec<u32>,
    /// Natural-log probability of each token before truncation: penalties and temperature are in it; `top_k`, `top_p` and
    /// `min_p` are not. At temperature 0 that at temperature 1.
    pub logprobs: Vec<f32>,
    /// Natural-log probability of each token under the truncated distribution that it was drawn from; equal to `logprobs` where
    /// nothing is truncated. At temperature 0 all zero.
    pub truncated_logprobs: Vec<f32>,
    /// Entropy, in nats, of the distribution of `logprobs` at each token.
    pub entropies: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// One completion to sample in a [`GenerationSession`].
#[derive(Clone, Debug)]
pub struct SessionRequest {
    /// What to continue, and its place in the random stream.
    pub request: GenerationRequest,
    /// How to sample it. `max_concurrent` and `apart` have no meaning here.
    pub params: Arc<SamplingParams>,
    /// Most likely tokens that are reported at each place beside the sampled one.
    pub top_logprobs: usize,
}

/// Names a request of a [`GenerationSession`].
pub type RequestId = u64;

/// One sampled token of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionToken {
    /// The request.
    pub id: RequestId,
    /// The token.
    pub token: u32,
    /// As [`Completion::logprobs`].
    pub logprob: f32,
    /// As [`Completion::truncated_logprobs`].
    pub truncated_logprob: f32,
    /// As [`Completion::entropies`].
    pub entropy: f32,
    /// The most likely tokens with their log-probabilities as in `logprob`, most likely first.
    pub top: Vec<(u32, f32)>,
    /// Set with the last token.
    pub finish: Option<FinishReason>,
}

/// Limits of a [`GenerationSession`], planned before the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sequences that are decoded together; the others wait.
    pub max_concurrent: usize,
    /// Tokens of a prompt and its completion together; a longer request is refused.
    pub max_tokens: usize,
}

/// A running batch that requests enter and leave at every step.
pub trait GenerationSession {
    /// Puts a request in the queue.
    ///
    /// # Errors
    /// [`ModelError::Input`] when it does not fit the model or the limits of the session.
    fn submit(&mut self, request: SessionRequest) -> Result<RequestId, ModelError>;

    /// Takes a request out, finished or not. One that is not there is no error.
    fn cancel(&mut self, id: RequestId);

    /// Lets waiting requests in and decodes one token for every sequence of the batch. Empty when nothing is to be done; tokens
    /// of a request come in their order, those of a step may come with the next one.
    ///
    /// # Errors
    /// On a device error.
    fn step(&mut self) -> Result<Vec<SessionToken>, ModelError>;

    /// Requests that are waiting or being decoded.
    fn pending(&self) -> usize;
}

/// Progress of one `generate` call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationProgress {
    /// Requests that are complete.
    pub sequences: usize,
    /// Tokens sampled so far.
    pub tokens: usize,
}

/// Follows a `generate` call from the thread that made it.
pub trait GenerationWatch {
    /// Called about once for each token position; `Break` ends the call with [`ModelError::Interrupted`].
    fn progress(&mut self, progress: GenerationProgress) -> ControlFlow<()>;

    /// Called once for each request, as soon as its completion is known, so that it can be judged while others are sampled.
    /// `index` is its place among the requests.
    fn finished(&mut self, _index: usize, _completion: &Completion) {}
}

/// A function of the progress is a watch that does not look at completions.
impl<F: FnMut(GenerationProgress) -> ControlFlow<()>> GenerationWatch for F {
    fn progress(&mut self, progress: GenerationProgress) -> ControlFlow<()> {
        self(progress)
    }
}

/// One sequence to learn from.
#[derive(Clone, Debug, Default)]
pub struct TrainSequence {
    /// The prompt; its tokens carry no loss.
    pub prompt: Arc<TokenizedPrompt>,
    /// Completion token ids.
    pub completion: Vec<u32>,
    /// Whether each completion token carries loss, for conversations with several turns; empty: every one does.
    pub loss_mask: Vec<bool>,
    /// Factor of every token's loss. The caller chooses the aggregation with it: `1 / (sequences * length)` is the
    /// sequence mean, `1 / tokens` the token mean, over the *whole* optimizer step.
    pub token_weight: f32,
    /// Advantage of each completion token, or one value for all of them (policy losses only).
    pub advantages: Vec<f32>,
    /// Log-probabilities of the completion tokens that ratios are taken to: those that the sampler gave, or recomputed ones at
    /// the start of the rollout's updates (policy losses only; empty otherwise).
    pub sampler_logprobs: Vec<f32>,
    /// Log-probabilities of the completion tokens under the reference model, where the loss has a divergence term.
    pub reference_logprobs: Vec<f32>,
    /// Factor of each token's negative log-probability, added to a policy loss: the positive-example loss of VAPO
    /// (arXiv 2504.05118, section 4.5); 0: none.
    pub imitation_weight: f32,
}

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// Number format of the weights.
    pub precision: Precision,
    /// Set to train it: gradients, optimizer state.
    pub training: Option<TrainOptions>,
}

/// A set of weights of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightSet {
    /// As they are trained, adapters included.
    #[default]
    Current,
    /// Their moving average ([`TrainOptions::averaging`]).
    Averaged,
    /// Without adapters ([`TrainOptions::lora`]): the model that training started from.
    Base,
}

/// What one optimizer step did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
}

/// Facts about a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Architecture, as in `config.json`'s `model_type`.
    pub family: String,
    /// Number of weights.
    pub parameters: u64,
    /// Device it runs on, for example `cpu` or `cuda:0`.
    pub device: String,
}

/// Loads policies. One per process and device.
pub trait ModelBackend: Send + Sync {
    /// Name, version and device, for records: for example `libtorch 2.11.0 cpu`.
    fn describe(&self) -> String;

    /// Loads a Hugging Face folder.
    ///
    /// # Errors
    /// When a file is missing or a tensor is missing, extra or misshaped; the message names it.
    fn load(&self, folder: &Path, options: &LoadOptions) -> Result<Box<dyn Policy>, ModelError>;

    /// Writes a folder with randomly initialised weights for the `config.json` in `config_folder`, with all
    /// its other files (tokenizer, processor) copied.
    ///
    /// # Errors
    /// When the configuration cannot be read or names an unknown architecture.
    fn initialise(
        &self,
        config_folder: &Path,
        seed: u64,
        folder: &Path,
    ) -> Result<ModelInfo, ModelError>;
}

/// A model with its optimizer state on one device, owned by one thread.
pub trait Policy: Send {
    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Whether [`Policy::generate`] can continue a prompt by this many tokens.
    ///
    /// # Errors
    /// [`ModelError::Input`] when the prompt does not fit the model (context length, image placeholders).
    fn check_prompt(
        &self,
        prompt: &TokenizedPrompt,
        max_new_tokens: usize,
    ) -> Result<(), ModelError>;

    /// Samples one completion per request, in the order of the requests. `watch` follows and may break off, which gives
    /// [`ModelError::Interrupted`].
    ///
    /// # Errors
    /// When a prompt does not fit the model (context length, image placeholders), or on a device error.
    fn generate(
        &mut self,
        requests: &[GenerationRequest],
        params: &SamplingParams,
        watch: &mut dyn GenerationWatch,
    ) -> Result<Vec<Completion>, ModelError>;

    /// Opens a batch that requests can enter and leave at any time.
    ///
    /// # Errors
    /// [`ModelError::Input`] when the limits do not fit the model or the memory of the device.
    fn session(
        &mut self,
        limits: SessionLimits,
    ) -> Result<Box<dyn GenerationSession + '_>, ModelError>;

    /// Log-probability of each completion token, per sequence, at temperature 1, without gradients.
    ///
    /// # Errors
    /// As [`Policy::generate`].
    fn logprobs(&mut self, sequences: &[TrainSequence]) -> Result<Vec<Vec<f32>>, ModelError>;

    /// Adds the gradient of the weighted loss of these sequences. Micro-batches of one optimizer step are calls in a row.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] when the loss is not finite. Gradients are then as before the call, or, on a device where a second
    /// set of them would not fit, those of the step so far are gone: no update may follow.
    fn forward_backward(
        &mut self,
        sequences: &[TrainSequence],
        loss: Loss,
    ) -> Result<LossReport, ModelError>;

    /// Clips the gradients, applies AdamW with this learning rate, and clears the gradients.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] when the gradient norm is not finite; the weights are then unchanged.
    fn optimizer_step(&mut self, learning_rate: f64) -> Result<StepReport, ModelError>;

    /// Takes a set of weights for `generate`, `session`, `logprobs` and `save` until another is taken. Training calls need
    /// [`WeightSet::Current`], which a policy begins with.
    ///
    /// # Errors
    /// [`ModelError::Input`] when the model was loaded without what the set needs.
    fn use_weights(&mut self, weights: WeightSet) -> Result<(), ModelError>;

    /// Gives back the memory of the last `generate` call: key-value cache, workspace. Called before an update.
    fn release_generation(&mut self);

    /// Plans the memory of the work that is to come. Nothing is allocated.
    ///
    /// # Errors
    /// [`ModelError::Input`] when it cannot fit: the message has the parts and says what to change.
    fn plan_memory(&self, demand: &MemoryDemand) -> Result<MemoryPlan, ModelError>;

    /// The most bytes that the process has held on its device (its resident memory for a CPU) so far. On a GPU that includes what is kept
    /// for later use, and what other processes hold there: where memory is plenty it is more than [`Self::plan_memory`] says is needed.
    fn peak_memory(&self) -> u64;

    /// Writes the weights in use, adapters merged, as `model.safetensors` (16-bit or 32-bit as the model is held) with
    /// `config.json`, and copies tokenizer and processor files of the folder that it was loaded from.
    ///
    /// # Errors
    /// When the folder cannot be written.
    fn save(&self, folder: &Path) -> Result<(), ModelError>;

    /// Writes the adapters as peft has them: `adapter_model.safetensors` and `adapter_config.json`.
    ///
    /// # Errors
    /// When the folder cannot be written, or the model has no adapters.
    fn save_adapter(&self, folder: &Path) -> Result<(), ModelError>;

    /// Writes everything that training goes on from: weights as the optimizer holds them, its moments, its count of steps.
    /// Gradients are not part of it: it is called between two optimizer steps.
    ///
    /// # Errors
    /// When the folder cannot be written, or the model was not loaded for training.
    fn save_state(&self, folder: &Path) -> Result<(), ModelError>;

    /// Takes up the state that [`Policy::save_state`] wrote for a model of the same configuration. Training then goes on as
    /// if it had never stopped, bit for bit on the CPU.
    ///
    /// # Errors
    /// When a file or tensor is missing, extra or misshaped; the message names it.
    fn load_state(&mut self, folder: &Path) -> Result<(), ModelError>;
}
