//! A running batch: requests wait, enter when there is a slot and memory, and leave when they end.
//!
//! The host is one step ahead of what it knows: it starts a step before it has seen the tokens of the one before, so that the device
//! never waits. A sequence that ends by a stop token is therefore run once more, in its own pages, and that token is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use engine_core::error::ModelError;
use engine_core::policy::{
    GenerationSession, RequestId, SessionLimits, SessionRequest, SessionToken, TokenizedPrompt,
};

use super::Gpu;
use super::decode::{Graphs, ItemCounts, StepKind, step_words, width};
use super::kernels::PAGE;
use super::memory::{DRAW_WORDS, Memory, PARAM_WORDS};
use super::sequence::{Prompt, Queue, Sequence, Waiting, check_params, is_plain, own_page_count};
use super::upload::{Download, Uploads};
use crate::guard::guarded;
use crate::model::Model;

/// How many rows a step is run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Always as many as there are slots: then a sequence's bits do not depend on how many others there are.
    Fixed,
    /// As few as hold the sequences.
    Fitting,
}

/// Draws whose results are under way.
#[derive(Debug)]
struct Flight {
    download: Download,
    /// Request of each draw, if any.
    requests: Vec<Option<RequestId>>,
    /// The most likely tokens of some requests.
    top: HashMap<RequestId, Vec<(u32, f32)>>,
}

/// A running batch.
pub(super) struct Batch<'a> {
    pub(super) gpu: &'a mut Gpu,
    pub(super) model: &'a Model,
    pub(super) memory: Memory,
    pub(super) uploads: Uploads,
    idle_downloads: Vec<Download>,
    flights: VecDeque<Flight>,
    pub(super) graphs: Graphs,
    pub(super) limits: SessionLimits,
    width: Width,
    pub(super) queue: Queue,
    pub(super) prompts: Vec<Option<Prompt>>,
    by_source: HashMap<*const TokenizedPrompt, usize>,
    pub(super) slots: Vec<Option<Sequence>>,
    pub(super) places: HashMap<RequestId, usize>,
    next_id: RequestId,
    /// Copies of the device's tables.
    pub(super) params: Vec<i32>,
    pub(super) own_pages: Vec<i32>,
    pub(super) prompt_spans: Vec<i32>,
    pub(super) items: ItemCounts,
    /// Whether the tables are newer than the device's.
    pub(super) is_changed: bool,
}

impl<'a> Batch<'a> {
    /// Plans the memory.
    ///
    /// # Errors
    /// [`ModelError::Input`] when the limits do not fit.
    pub(super) fn open(
        gpu: &'a mut Gpu,
        model: &'a Model,
        limits: SessionLimits,
        width_rule: Width,
    ) -> Result<Self, ModelError> {
        if limits.max_concurrent == 0 {
            return Err(ModelError::Input(
                "max_concurrent is 0; allow at least one sequence".to_owned(),
            ));
        }
        let tch::Device::Cuda(number) = model.device else {
            return Err(ModelError::Backend("decoding here needs a GPU".to_owned()));
        };
        // What a trainer does on the default stream is over before its weights are read here.
        tch::Cuda::synchronize(number as i64);
        let slots = width(limits.max_concurrent);
        let memory = Memory::plan(model, slots, limits)?;
        let count = usize::try_from(slots).unwrap_or(1);
        Ok(Self {
            gpu,
            model,
            uploads: Uploads::new()?,
            idle_downloads: Vec::new(),
            flights: VecDeque::new(),
            graphs: Graphs::new(),
            limits,
            width: width_rule,
            queue: Queue::new(),
            prompts: Vec::new(),
            by_source: HashMap::new(),
            slots: (0..count).map(|_| None).collect(),
            places: HashMap::new(),
            next_id: 0,
            params: vec![0; count * PARAM_WORDS],
            own_pages: vec![0; count * memory.own_pages_each],
            prompt_spans: vec![0; count],
            items: ItemCounts::default(),
            is_changed: false,
            memory,
        })
    }

    pub(super) fn active(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_plain(&self) -> bool {
        self.slots
            .iter()
            .flatten()
            .all(|sequence| is_plain(sequence.params()))
    }

    /// Starts a step for the sequences in the batch.
    fn decode(&mut self) -> Result<(), ModelError> {
        let highest = self.slots.iter().rposition(Option::is_some);
        let Some(highest) = highest else {
            return Ok(());
        };
        let mut rows = self.slots.len();
        if self.width == Width::Fitting {
            let fitting = width(self.active());
            if fitting < width(highest + 1) {
                self.close_gaps();
            }
            let highest = self.slots.iter().rposition(Option::is_some).unwrap_or(0);
            rows = usize::try_from(width(highest + 1)).unwrap_or(1).min(rows);
        }
        self.send_tables()?;
        let is_going = |sequence: &Sequence| sequence.goes_on().then_some(sequence.id);
        let requests: Vec<Option<RequestId>> = self.slots[..rows]
            .iter()
            .map(|slot| slot.as_ref().and_then(is_going))
            .collect();
        let Some(words) = step_words(rows, &mut self.slots, &self.prompts, self.items) else {
            return Ok(());
        };
        self.uploads
            .words(&self.gpu.stream, &self.memory.step_words, 0, &words)?;
        self.uploads.turn(&self.gpu.stream)?;
        let kind = StepKind {
            rows: rows as i64,
            is_plain: self.is_plain(),
            is_together: self.items.together > 0,
        };
        self.gpu
            .decode(self.model, &self.memory, &mut self.graphs, kind)?;
        let sources: Vec<usize> = (0..rows).collect();
        self.take_off(requests, &sources)
    }

    /// Starts copying the results of draws to the host.
    pub(super) fn take_off(
        &mut self,
        requests: Vec<Option<RequestId>>,
        rows: &[usize],
    ) -> Result<(), ModelError> {
        let top = self.most_likely(&requests, rows)?;
        let words = requests.len() * DRAW_WORDS;
        let room = self.memory.results.numel();
        let mut download = match self.idle_downloads.pop() {
            Some(download) => download,
            None => Download::new(room)?,
        };
        download.start(&self.gpu.stream, &self.memory.results, words)?;
        self.flights.push_back(Flight {
            download,
            requests,
            top,
        });
        Ok(())
    }

    /// The most likely tokens for requests that ask for them, before penalties.
    fn most_likely(
        &self,
        requests: &[Option<RequestId>],
        rows: &[usize],
    ) -> Result<HashMap<RequestId, Vec<(u32, f32)>>, ModelError> {
        let mut top = HashMap::new();
        let unread = |error: tch::TchError| ModelError::Backend(error.to_string());
        for (request, row) in requests.iter().zip(rows) {
            let Some(id) = request else { continue };
            let Some(sequence) = self
                .places
                .get(id)
                .and_then(|slot| self.slots[*slot].as_ref())
            else {
                continue;
            };
            let wanted = sequence.request.top_logprobs as i64;
            if wanted == 0 {
                continue;
            }
            let temperature = sequence.params().temperature;
            let factor = if temperature > 0.0 {
                1.0 / temperature
            } else {
                1.0
            };
            let logprobs = (self.memory.logits.get(*row as i64) * factor).log_softmax(-1, None);
            let (values, tokens) =
                logprobs.topk(wanted.min(logprobs.numel() as i64), -1, true, true);
            let values =
                Vec::<f32>::try_from(values.to_device(tch::Device::Cpu)).map_err(unread)?;
            let tokens =
                Vec::<i64>::try_from(tokens.to_device(tch::Device::Cpu)).map_err(unread)?;
            let pairs = tokens.into_iter().map(|token| token as u32).zip(values);
            top.insert(*id, pairs.collect());
        }
        Ok(top)
    }

    /// Waits for the oldest draws and takes their tokens.
    fn land(&mut self) -> Result<Vec<SessionToken>, ModelError> {
        let Some(mut flight) = self.flights.pop_front() else {
            return Ok(Vec::new());
        };
        let mut tokens = Vec::with_capacity(flight.requests.len());
        let results = flight.download.wait()?;
        let mut ended = Vec::new();
        for (request, words) in flight.requests.iter().zip(results.chunks_exact(DRAW_WORDS)) {
            let Some((id, slot)) = request.and_then(|id| Some((id, *self.places.get(&id)?))) else {
                continue;
            };
            let sequence = self.slots[slot].as_mut().expect("a place has a sequence");
            let [logprob, truncated_logprob, entropy] =
                [words[1], words[2], words[3]].map(f32::from_bits);
            if !logprob.is_finite() {
                return Err(ModelError::NonFinite(format!(
                    "logits of request {id} at token {} while sampling",
                    sequence.tokens.len()
                )));
            }
            let finish = sequence.take(words[0]);
            if finish.is_some() {
                ended.push(id);
            }
            tokens.push(SessionToken {
                id,
                token: words[0],
                logprob,
                truncated_logprob,
                entropy,
                top: flight.top.remove(&id).unwrap_or_default(),
                finish,
            });
        }
        self.idle_downloads.push(flight.download);
        for id in ended {
            self.leave(id);
        }
        Ok(tokens)
    }

    /// Takes a sequence out; what is under way writes to pages that nobody else gets before it is over, because everything is on
    /// one stream.
    fn leave(&mut self, id: RequestId) {
        if let Some(sequence) = self
            .places
            .remove(&id)
            .and_then(|slot| self.slots[slot].take())
        {
            self.memory.pages.give_back(sequence.own_pages);
            self.release(sequence.prompt);
            self.is_changed = true;
        }
    }

    /// One user less of a prompt.
    fn release(&mut self, prompt: usize) {
        let users = self.prompts[prompt].as_mut().map(|prompt| {
            prompt.users -= 1;
            prompt.users
        });
        if users == Some(0)
            && let Some(prompt) = self.prompts[prompt].take()
        {
            self.by_source.remove(&Arc::as_ptr(&prompt.source));
            self.memory.pages.give_back(prompt.pages);
        }
    }

    /// Moves the sequences in the highest slots to the lowest free ones.
    fn close_gaps(&mut self) {
        loop {
            let gap = self.slots.iter().position(Option::is_none);
            let last = self.slots.iter().rposition(Option::is_some);
            let (Some(gap), Some(last)) = (gap, last) else {
                return;
            };
            if gap > last {
                return;
            }
            let sequence = self.slots[last].take().expect("the last one is there");
            let per_slot = [
                Some(&self.memory.next),
                self.memory.counts.as_ref(),
                self.memory.allowed.as_ref(),
            ];
            for table in per_slot.into_iter().flatten() {
                table.get(gap as i64).copy_(&table.get(last as i64));
            }
            self.write_tables(gap, &sequence);
            self.places.insert(sequence.id, gap);
            self.slots[gap] = Some(sequence);
        }
    }

    fn advance(&mut self) -> Result<Vec<SessionToken>, ModelError> {
        let _stream = self
            .gpu
            .aten
            .use_stream(&self.gpu.stream, self.gpu.device)?;
        let before = self.flights.len();
        self.admit()?;
        self.decode()?;
        // One step stays under way, so that the device has work while the host looks at the one before.
        let keep = usize::from(self.flights.len() > before);
        let mut tokens = Vec::new();
        while self.flights.len() > keep {
            tokens.extend(self.land()?);
        }
        Ok(tokens)
    }

    /// The index of a prompt, new or known.
    fn enter_prompt(
        &mut self,
        source: &Arc<TokenizedPrompt>,
        room: usize,
    ) -> Result<usize, ModelError> {
        if let Some(index) = self.by_source.get(&Arc::as_ptr(source)) {
            let prompt = self.prompts[*index]
                .as_mut()
                .expect("a known prompt is there");
            prompt.users += 1;
            return Ok(*index);
        }
        let positions = self.model.check_prompt(source, room)?;
        let prompt = Some(Prompt {
            source: Arc::clone(source),
            positions,
            pages: Vec::new(),
            state: None,
            users: 1,
        });
        let index = match self.prompts.iter().position(Option::is_none) {
            Some(index) => {
                self.prompts[index] = prompt;
                index
            }
            None => {
                self.prompts.push(prompt);
                self.prompts.len() - 1
            }
        };
        self.by_source.insert(Arc::as_ptr(source), index);
        Ok(index)
    }
}

impl GenerationSession for Batch<'_> {
    fn submit(&mut self, request: SessionRequest) -> Result<RequestId, ModelError> {
        check_params(&request.params, self.model.config.text.vocab)?;
        let length = request.request.prompt.token_ids.len();
        let room = request.params.max_new_tokens;
        if length + room > self.limits.max_tokens {
            return Err(ModelError::Input(format!(
                "a prompt of {length} tokens and {room} more are above the limit of {} tokens",
                self.limits.max_tokens
            )));
        }
        let positions = self.model.config.text.max_positions;
        if length + room > positions {
            return Err(ModelError::Input(format!(
                "a prompt of {length} tokens and {room} more do not fit the {positions} positions of the model"
            )));
        }
        let needed = length.div_ceil(PAGE) + own_page_count(&request);
        if needed > self.memory.pages.total() {
            return Err(ModelError::Input(format!(
                "a prompt of {length} tokens and {room} more need {needed} pages of the key-value cache, which has {}",
                self.memory.pages.total()
            )));
        }
        let source = Arc::clone(&request.request.prompt);
        let prompt = guarded(|| self.enter_prompt(&source, room))?;
        let id = self.next_id;
        self.next_id += 1;
        self.queue.push_back(Waiting {
            id,
            request,
            prompt,
        });
        Ok(id)
    }

    fn cancel(&mut self, id: RequestId) {
        if let Some(place) = self.queue.iter().position(|waiting| waiting.id == id) {
            if let Some(waiting) = self.queue.remove(place) {
                self.release(waiting.prompt);
            }
        } else {
            self.leave(id);
        }
    }

    fn step(&mut self) -> Result<Vec<SessionToken>, ModelError> {
        guarded(|| tch::no_grad(|| self.advance()))
    }

    fn pending(&self) -> usize {
        self.queue.len() + self.places.len()
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // Memory is given back when nothing reads or writes it any more.
        if let Err(error) = self.gpu.stream.synchronise() {
            tracing::warn!(%error, "a batch ended with an error");
        }
    }
}
