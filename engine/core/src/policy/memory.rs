//! Memory that is planned before the work begins.

/// Work that memory is planned for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryDemand {
    /// Tokens of the longest sequence to learn from, prompt included; 0: nothing is learnt.
    pub train_tokens: usize,
    /// Token positions of the most sequences that are learnt from in one call, or more; 0: not known, a pass may have as many as it likes.
    pub call_tokens: usize,
    /// Tokens of the longest prompt and completion together to generate; 0: nothing is generated.
    pub generate_tokens: usize,
    /// Sequences that are generated at the same time.
    pub generate_concurrent: usize,
}

/// Bytes that a policy needs on its device, planned before the work begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights that the model computes with.
    pub weights: u64,
    /// Gradients of the trained ones.
    pub gradients: u64,
    /// Masters and moments.
    pub optimizer: u64,
    /// Moving average of the weights.
    pub average: u64,
    /// Activations of the largest forward and backward pass, those of the output head included.
    pub activations: u64,
    /// Key-value cache and workspace of generation; released before an update, so not at the same time as activations.
    pub generation: u64,
    /// Bytes of the device, or of the machine for a CPU, that are there for all this.
    pub available: u64,
}

impl MemoryPlan {
    /// The most that is needed at one time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.weights
            + self.gradients
            + self.optimizer
            + self.average
            + self.activations.max(self.generation)
    }
}
