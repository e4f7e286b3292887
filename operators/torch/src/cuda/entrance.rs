//! How requests enter a batch: which of them, their prompts' run, their slots and tables, their first tokens.

use std::sync::Arc;

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use super::batch::Batch;
use super::decode::Items;
use super::driver::address;
use super::forward::head_product;
use super::kernels::{PAGE, PROMPT_SPAN};
use super::memory::{DRAW_WORDS, FIRST_DRAWS, PARAM_WORDS};
use super::prompts::pack;
use super::sequence::{Prompt, Sequence, has_penalties, own_page_count, param_words};
use crate::model::indices;

/// Tokens of new prompts that enter between two steps, while others are decoded.
const ENTERING_TOKENS: usize = 8192;
/// Sequences enter when this share of the slots is free, so that prompts are run together.
const REFILL_SHARE: usize = 16;
/// In the counts of tokens: the prompt has it.
const IN_PROMPT: i64 = -0x8000;

impl Batch<'_> {
    /// Takes waiting requests, in their order, as far as slots and pages reach.
    fn choose(&mut self) -> Vec<Sequence> {
        let room = self.limits.max_concurrent.min(self.slots.len());
        let free = room.saturating_sub(self.active());
        let enough = (room / REFILL_SHARE).max(1).min(self.queue.len());
        let mut chosen = Vec::new();
        if free == 0 || (self.active() > 0 && free < enough) {
            return chosen;
        }
        let mut tokens = 0;
        while let Some(front) = self.queue.front() {
            let prompt = self.prompts[front.prompt]
                .as_ref()
                .expect("a request has a prompt");
            let length = prompt.source.token_ids.len();
            let is_new = prompt.pages.is_empty();
            let is_much =
                is_new && self.active() > 0 && tokens > 0 && tokens + length > ENTERING_TOKENS;
            if chosen.len() == free || is_much {
                break;
            }
            let own = own_page_count(&front.request);
            let needed = own + if is_new { length.div_ceil(PAGE) } else { 0 };
            if self.memory.pages.free() < needed {
                // Where nobody is at work nobody gives pages back, but prompts that only wait may hold some.
                let wanted = front.prompt;
                if self.active() == 0 && chosen.is_empty() && self.drop_idle_prompts(wanted) {
                    continue;
                }
                break;
            }
            let waiting = self.queue.pop_front().expect("there is a front");
            if is_new {
                let pages = self
                    .memory
                    .pages
                    .take(length.div_ceil(PAGE))
                    .expect("counted above");
                self.prompts[waiting.prompt]
                    .as_mut()
                    .expect("a request has a prompt")
                    .pages = pages;
                tokens += length;
            }
            chosen.push(Sequence {
                id: waiting.id,
                prompt: waiting.prompt,
                own_pages: self.memory.pages.take(own).expect("counted above"),
                request: waiting.request,
                launched: 0,
                tokens: Vec::new(),
                finish: None,
            });
        }
        chosen
    }

    /// Takes the pages of all prompts but one, which no sequence uses; they are run again when their turn comes. False when
    /// there were none.
    fn drop_idle_prompts(&mut self, but: usize) -> bool {
        let mut is_some = false;
        for (index, prompt) in self.prompts.iter_mut().enumerate() {
            let Some(prompt) = prompt
                .as_mut()
                .filter(|prompt| index != but && !prompt.pages.is_empty())
            else {
                continue;
            };
            self.memory
                .pages
                .give_back(std::mem::take(&mut prompt.pages));
            prompt.state = None;
            is_some = true;
        }
        is_some
    }

    /// Lets requests in: runs their prompts, gives them slots, and draws their first tokens.
    pub(super) fn admit(&mut self) -> Result<(), ModelError> {
        let chosen = self.choose();
        if chosen.is_empty() {
            return Ok(());
        }
        let mut fresh: Vec<(usize, usize)> = Vec::new();
        for sequence in &chosen {
            let prompt = self.prompts[sequence.prompt]
                .as_ref()
                .expect("a sequence has a prompt");
            if prompt.state.is_none() && fresh.last().is_none_or(|last| last.0 != sequence.prompt) {
                fresh.push((sequence.prompt, prompt.source.token_ids.len()));
            }
        }
        fresh.sort_unstable();
        fresh.dedup();
        for (rows, members) in pack(&fresh) {
            let prompts: Vec<&Prompt> = members
                .iter()
                .filter_map(|index| self.prompts[*index].as_ref())
                .collect();
            let states = self.gpu.run_prompts(
                self.model,
                &self.memory,
                &mut self.uploads,
                rows,
                &prompts,
            )?;
            for (place, index) in members.iter().enumerate() {
                let prompt = self.prompts[*index].as_mut().expect("it was just run");
                prompt.state = Some(states.get(place as i64));
            }
        }
        let mut seated = Vec::with_capacity(chosen.len());
        for sequence in chosen {
            seated.push(self.seat(sequence));
        }
        self.send_tables()?;
        for slots in seated.chunks(FIRST_DRAWS as usize) {
            self.draw_first(slots)?;
        }
        Ok(())
    }

    /// Gives a sequence the lowest free slot.
    fn seat(&mut self, sequence: Sequence) -> usize {
        let slot = self
            .slots
            .iter()
            .position(Option::is_none)
            .expect("there is a free slot");
        self.write_tables(slot, &sequence);
        self.places.insert(sequence.id, slot);
        let params = Arc::clone(&sequence.request.params);
        if has_penalties(&params) || self.memory.counts.is_some() {
            self.count_prompt(slot, sequence.prompt);
        }
        if !params.allowed_token_ids.is_empty() {
            self.allow(slot, &params.allowed_token_ids);
        }
        self.slots[slot] = Some(sequence);
        slot
    }

    pub(super) fn write_tables(&mut self, slot: usize, sequence: &Sequence) {
        let prompt = self.prompts[sequence.prompt]
            .as_ref()
            .expect("a sequence has a prompt");
        let spans = prompt.source.token_ids.len().div_ceil(PROMPT_SPAN);
        self.prompt_spans[slot] = spans as i32;
        self.params[slot * PARAM_WORDS..][..PARAM_WORDS]
            .copy_from_slice(&param_words(&sequence.request));
        let each = self.memory.own_pages_each;
        self.own_pages[slot * each..][..sequence.own_pages.len()]
            .copy_from_slice(&sequence.own_pages);
        self.is_changed = true;
    }

    fn count_prompt(&mut self, slot: usize, prompt: usize) {
        let vocab = self.model.config.text.vocab;
        let (slots, device) = (self.slots.len() as i64, self.model.device);
        if self.memory.counts.is_none() {
            // Recorded steps have the address of what was there before.
            self.graphs.clear();
        }
        let counts = (self.memory.counts)
            .get_or_insert_with(|| Tensor::zeros([slots, vocab], (Kind::Int16, device)));
        let source = &self.prompts[prompt]
            .as_ref()
            .expect("a sequence has a prompt")
            .source;
        let ids: Vec<i64> = source.token_ids.iter().map(|id| i64::from(*id)).collect();
        let mut row = counts.get(slot as i64);
        drop(row.zero_());
        drop(row.index_fill_(0, &indices(&ids, device), IN_PROMPT));
    }

    fn allow(&mut self, slot: usize, tokens: &[u32]) {
        let words = (self.model.config.text.vocab as usize).div_ceil(32);
        let (slots, device) = (self.slots.len() as i64, self.model.device);
        if self.memory.allowed.is_none() {
            self.graphs.clear();
        }
        let allowed = (self.memory.allowed)
            .get_or_insert_with(|| Tensor::zeros([slots, words as i64], (Kind::Int, device)));
        let mut bits = vec![0_u32; words];
        for token in tokens {
            if let Some(word) = bits.get_mut(*token as usize / 32) {
                *word |= 1 << (token % 32);
            }
        }
        let bits: Vec<i32> = bits.into_iter().map(u32::cast_signed).collect();
        allowed.get(slot as i64).copy_(&Tensor::from_slice(&bits));
    }

    /// Brings the device's tables up to date.
    pub(super) fn send_tables(&mut self) -> Result<(), ModelError> {
        if !std::mem::take(&mut self.is_changed) {
            return Ok(());
        }
        let text = &self.model.config.text;
        let list = Items::of(
            &self.slots,
            &self.prompts,
            text.key_heads,
            self.gpu.kernels.item_sequences(),
        );
        self.items = list.counts;
        debug_assert!(
            list.heads.len() <= self.memory.most_items,
            "the list was planned"
        );
        let (stream, memory) = (&self.gpu.stream, &self.memory);
        let tables: [(&Tensor, &[i32]); 7] = [
            (&memory.params, &self.params),
            (&memory.own_pages, &self.own_pages),
            (&memory.prompt_spans, &self.prompt_spans),
            (&memory.items, &list.items),
            (&memory.item_heads, &list.heads),
            (&memory.members, &list.members),
            (&memory.prompt_pages, &list.pages),
        ];
        for (target, words) in tables {
            self.uploads.words(stream, target, 0, words)?;
        }
        self.uploads.turn(stream)
    }

    /// Draws the first tokens of sequences that just entered, from the states of their prompts.
    fn draw_first(&mut self, slots: &[usize]) -> Result<(), ModelError> {
        let text = &self.model.config.text;
        let mut states = Vec::with_capacity(slots.len());
        let mut words = vec![0; FIRST_DRAWS as usize * DRAW_WORDS];
        let mut requests = Vec::with_capacity(slots.len());
        for draw in words.chunks_mut(DRAW_WORDS) {
            draw[1] = -1;
        }
        for (place, slot) in slots.iter().enumerate() {
            let sequence = self.slots[*slot].as_mut().expect("it was just seated");
            sequence.launched = 1;
            let prompt = self.prompts[sequence.prompt]
                .as_ref()
                .expect("a sequence has a prompt");
            states.push(
                prompt
                    .state
                    .as_ref()
                    .expect("its prompt was run")
                    .shallow_clone(),
            );
            words[place * DRAW_WORDS..][..2].copy_from_slice(&[place as i32, *slot as i32]);
            requests.push(Some(sequence.id));
        }
        let (stream, memory) = (&self.gpu.stream, &self.memory);
        memory
            .last_states
            .narrow(0, 0, slots.len() as i64)
            .copy_(&Tensor::stack(&states, 0));
        self.uploads.words(stream, &memory.first_words, 0, &words)?;
        self.uploads.turn(stream)?;
        let head = head_product(text, FIRST_DRAWS);
        self.gpu.gemm.prepare(head)?;
        let language = &self.model.language;
        self.gpu.gemm.run(
            &self.gpu.stream,
            head,
            &language.head,
            &memory.last_states,
            &memory.logits,
        )?;
        let plain = self.is_plain();
        self.gpu
            .draw(memory, FIRST_DRAWS, address(&memory.first_words), plain)?;
        let sources: Vec<usize> = (0..slots.len()).collect();
        self.take_off(requests, &sources)
    }
}
