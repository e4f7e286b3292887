//! A policy without a network: every prompt has the same few completions, and training moves their probabilities.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use engine_core::policy::{
    Completion, FinishReason, GenerationProgress, GenerationRequest, GenerationSession,
    GenerationWatch, LoadOptions, Loss, LossReport, MemoryDemand, MemoryPlan, ModelInfo,
    SamplingParams, SessionLimits, StepReport, TokenizedPrompt, TrainSequence, WeightSet,
};
use engine_core::{ModelBackend, ModelError, Policy, seed};

use super::fake_session::FakeSession;

/// The file of a policy's state.
const STATE_FILE: &str = "fake.json";

/// What an operator asked of the policy, in order.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Load(LoadOptions),
    Generate { requests: usize, seed: u64 },
    Logprobs(usize),
    ForwardBackward(Vec<TrainSequence>, Loss),
    OptimizerStep(f64),
    UseWeights(WeightSet),
    Release,
    Plan(MemoryDemand),
}

/// Loads [`FakePolicy`]s over fixed completions.
pub(crate) struct FakeBackend {
    completions: Vec<Vec<u32>>,
    /// Completions of models that are loaded to be used only, where they are others.
    pub(crate) of_others: Option<Vec<Vec<u32>>>,
    /// Set, sampling goes round the completions by sample index instead of by probability.
    pub(crate) in_turn: bool,
    /// Makes the loss not finite at this call of `forward_backward`, counted from 0.
    pub(crate) explode_at: Option<usize>,
    /// Longest prompt and completion together.
    pub(crate) positions: usize,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl FakeBackend {
    pub(crate) fn new(completions: Vec<Vec<u32>>) -> Self {
        Self {
            completions,
            of_others: None,
            in_turn: false,
            explode_at: None,
            positions: usize::MAX,
            calls: Arc::default(),
        }
    }

    pub(crate) fn in_turn(completions: Vec<Vec<u32>>) -> Self {
        Self {
            in_turn: true,
            ..Self::new(completions)
        }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The sequences of every `forward_backward`.
    pub(crate) fn learnt(&self) -> Vec<Vec<TrainSequence>> {
        let calls = self.calls();
        let learnt = calls.into_iter().filter_map(|call| match call {
            Call::ForwardBackward(sequences, _) => Some(sequences),
            _ => None,
        });
        learnt.collect()
    }
}

impl ModelBackend for FakeBackend {
    fn describe(&self) -> String {
        "fake".into()
    }

    fn load(&self, _folder: &Path, options: &LoadOptions) -> Result<Box<dyn Policy>, ModelError> {
        self.calls.lock().unwrap().push(Call::Load(options.clone()));
        let others = self.of_others.as_ref();
        let others = others.filter(|_| options.training.is_none());
        let completions = others.unwrap_or(&self.completions).clone();
        Ok(Box::new(FakePolicy {
            info: ModelInfo {
                family: "fake".into(),
                parameters: completions.len() as u64,
                device: "cpu".into(),
            },
            logits: vec![0.0; completions.len()],
            gradient: vec![0.0; completions.len()],
            average: vec![0.0; completions.len()],
            base: vec![0.0; completions.len()],
            averaging: options
                .training
                .as_ref()
                .and_then(|training| training.averaging),
            in_use: WeightSet::Current,
            completions,
            in_turn: self.in_turn,
            explode_at: self.explode_at,
            positions: self.positions,
            passes: 0,
            calls: Arc::clone(&self.calls),
        }))
    }

    fn initialise(
        &self,
        _config_folder: &Path,
        _seed: u64,
        _folder: &Path,
    ) -> Result<ModelInfo, ModelError> {
        Err(ModelError::Backend("the fake makes no folders".into()))
    }
}

pub(super) struct FakePolicy {
    info: ModelInfo,
    completions: Vec<Vec<u32>>,
    /// One for each completion.
    logits: Vec<f64>,
    gradient: Vec<f64>,
    average: Vec<f64>,
    base: Vec<f64>,
    averaging: Option<f64>,
    in_use: WeightSet,
    in_turn: bool,
    explode_at: Option<usize>,
    positions: usize,
    passes: usize,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl FakePolicy {
    fn weights(&self) -> &[f64] {
        match self.in_use {
            WeightSet::Current => &self.logits,
            WeightSet::Averaged => &self.average,
            WeightSet::Base => &self.base,
        }
    }

    fn probabilities(&self) -> Vec<f64> {
        let weights = self.weights();
        let total: f64 = weights.iter().map(|logit| logit.exp()).sum();
        weights.iter().map(|logit| logit.exp() / total).collect()
    }

    fn choose(&self, request: &GenerationRequest, seed: u64) -> usize {
        if self.in_turn {
            return request.sample as usize % self.completions.len();
        }
        let draw = seed::derive(seed ^ request.prompt_stream, &request.sample.to_string());
        let mut left = draw as f64 / u64::MAX as f64;
        for (index, probability) in self.probabilities().into_iter().enumerate() {
            left -= probability;
            if left <= 0.0 {
                return index;
            }
        }
        self.completions.len() - 1
    }

    /// The completion of a request, cut where the stop check or the limit says.
    pub(super) fn complete(
        &self,
        request: &GenerationRequest,
        params: &SamplingParams,
    ) -> Completion {
        let index = self.choose(request, params.seed);
        let mut token_ids = self.completions[index].clone();
        let mut logprobs = self.logprobs_of(index);
        let stopped = params.stop_check.as_ref().and_then(|check| {
            (1..=token_ids.len()).find(|length| (check.0)(&token_ids[..*length]))
        });
        let length = stopped.unwrap_or(token_ids.len());
        let finish_reason = if length > params.max_new_tokens {
            FinishReason::Length
        } else {
            FinishReason::Stop
        };
        token_ids.truncate(length.min(params.max_new_tokens));
        logprobs.truncate(token_ids.len());
        Completion {
            truncated_logprobs: logprobs.clone(),
            entropies: vec![1.0; token_ids.len()],
            token_ids,
            logprobs,
            finish_reason,
        }
    }

    /// The probability of a completion, spread evenly over its tokens.
    fn logprobs_of(&self, index: usize) -> Vec<f32> {
        let tokens = self.completions[index].len();
        vec![(self.probabilities()[index].ln() / tokens as f64) as f32; tokens]
    }

    fn index_of(&self, sequence: &TrainSequence) -> usize {
        self.completions
            .iter()
            .position(|known| known.starts_with(&sequence.completion))
            .unwrap()
    }
}

impl Policy for FakePolicy {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn check_prompt(
        &self,
        prompt: &TokenizedPrompt,
        max_new_tokens: usize,
    ) -> Result<(), ModelError> {
        if prompt.token_ids.len() + max_new_tokens > self.positions {
            return Err(ModelError::Input(format!(
                "it does not fit {} positions",
                self.positions
            )));
        }
        Ok(())
    }

    fn generate(
        &mut self,
        requests: &[GenerationRequest],
        params: &SamplingParams,
        watch: &mut dyn GenerationWatch,
    ) -> Result<Vec<Completion>, ModelError> {
        self.calls.lock().unwrap().push(Call::Generate {
            requests: requests.len(),
            seed: params.seed,
        });
        let completions: Vec<Completion> = requests
            .iter()
            .map(|request| self.complete(request, params))
            .collect();
        let tokens = completions
            .iter()
            .map(|completion| completion.token_ids.len())
            .sum();
        for (index, completion) in completions.iter().enumerate() {
            watch.finished(index, completion);
        }
        match watch.progress(GenerationProgress {
            sequences: requests.len(),
            tokens,
        }) {
            ControlFlow::Break(()) => Err(ModelError::Interrupted),
            ControlFlow::Continue(()) => Ok(completions),
        }
    }

    fn session(
        &mut self,
        limits: SessionLimits,
    ) -> Result<Box<dyn GenerationSession + '_>, ModelError> {
        Ok(Box::new(FakeSession::new(self, limits)))
    }

    fn logprobs(&mut self, sequences: &[TrainSequence]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.calls
            .lock()
            .unwrap()
            .push(Call::Logprobs(sequences.len()));
        Ok(sequences
            .iter()
            .map(|sequence| self.logprobs_of(self.index_of(sequence)))
            .collect())
    }

    fn forward_backward(
        &mut self,
        sequences: &[TrainSequence],
        loss: Loss,
    ) -> Result<LossReport, ModelError> {
        self.calls
            .lock()
            .unwrap()
            .push(Call::ForwardBackward(sequences.to_vec(), loss));
        assert_eq!(self.in_use, WeightSet::Current);
        self.passes += 1;
        if self.explode_at == Some(self.passes - 1) {
            return Err(ModelError::NonFinite("loss NaN".into()));
        }
        let mut report = LossReport::default();
        let probabilities = self.probabilities();
        for sequence in sequences {
            let index = self
                .completions
                .iter()
                .position(|known| *known == sequence.completion);
            let tokens = sequence.completion.len();
            let weight = f64::from(sequence.token_weight) * tokens as f64;
            let pull = if loss == Loss::CrossEntropy {
                1.0
            } else {
                sequence.advantages.first().copied().map_or(0.0, f64::from)
            };
            for (place, probability) in probabilities.iter().enumerate() {
                let is_chosen = f64::from(u8::from(index == Some(place)));
                self.gradient[place] += weight * pull * (is_chosen - probability);
            }
            report.loss -= weight * pull;
            let masked = sequence.loss_mask.iter().filter(|is_target| !**is_target);
            report.tokens += tokens - masked.count();
            report.entropy_sum += tokens as f64;
        }
        Ok(report)
    }

    fn optimizer_step(&mut self, learning_rate: f64) -> Result<StepReport, ModelError> {
        self.calls
            .lock()
            .unwrap()
            .push(Call::OptimizerStep(learning_rate));
        let grad_norm = self
            .gradient
            .iter()
            .map(|value| value * value)
            .sum::<f64>()
            .sqrt();
        for (logit, gradient) in self.logits.iter_mut().zip(&mut self.gradient) {
            *logit += learning_rate * *gradient;
            *gradient = 0.0;
        }
        if let Some(decay) = self.averaging {
            for (average, logit) in self.average.iter_mut().zip(&self.logits) {
                *average = decay * *average + (1.0 - decay) * logit;
            }
        }
        Ok(StepReport { grad_norm })
    }

    fn use_weights(&mut self, weights: WeightSet) -> Result<(), ModelError> {
        self.calls.lock().unwrap().push(Call::UseWeights(weights));
        if weights == WeightSet::Averaged && self.averaging.is_none() {
            return Err(ModelError::Input("there is no average".into()));
        }
        self.in_use = weights;
        Ok(())
    }

    fn release_generation(&mut self) {
        self.calls.lock().unwrap().push(Call::Release);
    }

    fn plan_memory(&self, demand: &MemoryDemand) -> Result<MemoryPlan, ModelError> {
        self.calls.lock().unwrap().push(Call::Plan(*demand));
        Ok(MemoryPlan {
            weights: 1 << 30,
            available: 1 << 34,
            ..MemoryPlan::default()
        })
    }

    fn peak_memory(&self) -> u64 {
        1 << 30
    }

    fn save_adapter(&self, folder: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("adapter.txt"), format!("{:?}", self.weights())).unwrap();
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("weights.txt"), format!("{:?}", self.weights())).unwrap();
        Ok(())
    }

    fn save_state(&self, folder: &Path) -> Result<(), ModelError> {
        assert!(self.gradient.iter().all(|value| *value == 0.0));
        std::fs::create_dir_all(folder).unwrap();
        let bits =
            |values: &[f64]| -> Vec<u64> { values.iter().map(|value| value.to_bits()).collect() };
        let (logits, average) = (bits(&self.logits), bits(&self.average));
        let state =
            serde_json::json!({"logits": logits, "average": average, "passes": self.passes});
        std::fs::write(folder.join(STATE_FILE), state.to_string()).unwrap();
        Ok(())
    }

    fn load_state(&mut self, folder: &Path) -> Result<(), ModelError> {
        let text = std::fs::read(folder.join(STATE_FILE)).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let values = |name: &str| -> Vec<f64> {
            let bits: Vec<u64> = serde_json::from_value(state[name].clone()).unwrap();
            bits.into_iter().map(f64::from_bits).collect()
        };
        (self.logits, self.average) = (values("logits"), values("average"));
        self.passes = usize::try_from(state["passes"].as_u64().unwrap()).unwrap();
        Ok(())
    }
}
