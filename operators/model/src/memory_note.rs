//! The plan of memory of a training stage, told before it begins.

use engine_core::event::StageEvent;
use engine_core::policy::{MemoryDemand, MemoryPlan};
use engine_core::{OperatorError, Policy, StageView};

/// Plans the memory of a stage and tells the plan.
///
/// # Errors
/// When it cannot fit: the message of the policy says what to change.
pub(crate) fn plan_memory(
    policy: &dyn Policy,
    demand: &MemoryDemand,
    view: &dyn StageView,
) -> Result<MemoryPlan, OperatorError> {
    let plan = policy.plan_memory(demand)?;
    view.event(StageEvent::Note(memory_note(&plan)));
    Ok(plan)
}

/// Tells what a model takes that is loaded beside what is planned, of which `held` are the bytes at the peak.
///
/// # Errors
/// When it does not fit, with `advice`.
pub(crate) fn tell_beside(
    (name, weights): (&str, u64),
    held: u64,
    available: u64,
    advice: &str,
    view: &dyn StageView,
) -> Result<(), OperatorError> {
    let text = format!(
        "{name}: {} more, together at most {} of {}",
        size(weights),
        size(held + weights),
        size(available)
    );
    if held + weights > available {
        return Err(OperatorError::Data(format!("{text}; {advice}")));
    }
    view.event(StageEvent::Note(text));
    Ok(())
}

/// A plan in one line: its parts, the peak, and what is there.
pub(crate) fn memory_note(plan: &MemoryPlan) -> String {
    let parts = [
        ("weights", plan.weights),
        ("gradients", plan.gradients),
        ("optimizer", plan.optimizer),
        ("average", plan.average),
        ("activations", plan.activations),
        ("generation", plan.generation),
    ];
    let mut named: Vec<String> = parts
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", size(bytes)))
        .collect();
    if plan.activations > 0 && plan.generation > 0 {
        // One is released before the other is taken.
        let generation = named.pop().unwrap_or_default();
        if let Some(activations) = named.last_mut() {
            activations.push_str(" or ");
            activations.push_str(&generation);
        }
    }
    format!(
        "memory: {}; at most {} of {}",
        named.join(", "),
        size(plan.peak()),
        size(plan.available)
    )
}

/// Bytes in the largest unit that leaves a number of at least 1.
pub(crate) fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;
    if bytes >= GIB {
        format!("{:.1} GiB", bytes as f64 / GIB as f64)
    } else {
        format!("{} MiB", bytes.div_ceil(MIB))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_names_what_is_needed_and_what_is_there() {
        let plan = MemoryPlan {
            weights: 3 << 29,
            gradients: 3 << 29,
            optimizer: 0,
            average: 0,
            activations: 700 << 20,
            generation: 2 << 30,
            available: 80 << 30,
        };
        assert_eq!(
            memory_note(&plan),
            "memory: weights 1.5 GiB, gradients 1.5 GiB, activations 700 MiB or generation 2.0 GiB; at most 5.0 GiB of 80.0 GiB"
        );
        let training = MemoryPlan {
            generation: 0,
            ..plan
        };
        assert_eq!(
            memory_note(&training),
            "memory: weights 1.5 GiB, gradients 1.5 GiB, activations 700 MiB; at most 3.7 GiB of 80.0 GiB"
        );
    }
}
