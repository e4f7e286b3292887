//! Small tables on their way to the device and results on their way back, without making the host wait for the device.

use engine_core::error::ModelError;
use tch::{Kind, Tensor};

use super::driver::{Event, Pinned, Stream, address};

/// Steps whose tables can be under way at once: the one that runs, the one that follows, and one being made.
const ARENAS: usize = 4;
/// Words that one step's tables may have before another arena is taken.
const ARENA_WORDS: usize = 1 << 20;

/// Page-locked memory in turns; what is written in one turn stays until its copies are done.
#[derive(Debug)]
pub(super) struct Uploads {
    arenas: Vec<(Pinned, Event, bool)>,
    current: usize,
    used: usize,
}

impl Uploads {
    pub(super) fn new() -> Result<Self, ModelError> {
        let arena = || Ok((Pinned::new(ARENA_WORDS * 4)?, Event::new()?, false));
        Ok(Self {
            arenas: (0..ARENAS)
                .map(|_| arena())
                .collect::<Result<_, ModelError>>()?,
            current: 0,
            used: 0,
        })
    }

    /// Copies words to a device tensor of 32-bit integers, from its element `start` on.
    pub(super) fn words(
        &mut self,
        stream: &Stream,
        target: &Tensor,
        start: usize,
        words: &[i32],
    ) -> Result<(), ModelError> {
        assert!(
            target.kind() == Kind::Int && start + words.len() <= target.numel(),
            "words go to a tensor that holds them"
        );
        for (part, words) in words.chunks(ARENA_WORDS).enumerate() {
            if self.used + words.len() > ARENA_WORDS {
                self.turn(stream)?;
            }
            let (arena, _, _) = &mut self.arenas[self.current];
            arena.write(self.used * 4, words);
            let to = address(target) + 4 * (start + part * ARENA_WORDS) as u64;
            stream.copy_in(to, arena.at(self.used * 4), words.len() * 4)?;
            self.used += words.len();
        }
        Ok(())
    }

    /// Goes on to the next arena, once its earlier copies are done.
    pub(super) fn turn(&mut self, stream: &Stream) -> Result<(), ModelError> {
        if self.used == 0 {
            return Ok(());
        }
        let (_, event, is_used) = &mut self.arenas[self.current];
        event.record(stream)?;
        *is_used = true;
        self.current = (self.current + 1) % ARENAS;
        self.used = 0;
        let (_, event, is_used) = &self.arenas[self.current];
        if *is_used { event.wait() } else { Ok(()) }
    }
}

/// Results of one group of draws, under way to the host.
#[derive(Debug)]
pub(super) struct Download {
    memory: Pinned,
    event: Event,
    words: usize,
}

impl Download {
    pub(super) fn new(words: usize) -> Result<Self, ModelError> {
        Ok(Self {
            memory: Pinned::new(words * 4)?,
            event: Event::new()?,
            words: 0,
        })
    }

    /// Starts copying the first words of a tensor.
    pub(super) fn start(
        &mut self,
        stream: &Stream,
        source: &Tensor,
        words: usize,
    ) -> Result<(), ModelError> {
        assert!(words * 4 <= self.memory.bytes(), "results have room");
        stream.copy_out(self.memory.at(0), address(source), words * 4)?;
        self.words = words;
        self.event.record(stream)
    }

    /// Waits for the copy and gives the words.
    pub(super) fn wait(&self) -> Result<&[u32], ModelError> {
        self.event.wait()?;
        Ok(self.memory.read(self.words))
    }
}
