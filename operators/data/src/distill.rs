//! distill: turns a model's own correct rollouts into training examples, some for each prompt.
//!
//! Kept are correct completions that ended by themselves (a truncated one would teach not to stop). In this order: repeats of
//! the same tokens go, then copies of evaluation sets, then as many of a prompt as `keep` says are taken in its order, passing
//! over near duplicates, then the caps of `max` are drawn. Tokens go on as they were sampled. Examples come in the order of the
//! prompts, and within a prompt by sample.
//!
//! Rollouts of several stages are taken together: the first verdicts judge the first rollouts, and so on. Sample 0 of each comes
//! before sample 1 of each.
//!
//! Narrow columns are read first: in memory are the ids of the prompts, some bits for each rollout, and eight bytes for each
//! candidate. Texts and tokens are read once (twice with `max`) and only those of prompts that are being looked at are held.

mod candidates;
mod caps;
mod choose;
mod contamination;
mod groups;
mod prompts;
mod samples;
mod sources;
mod writer;

use engine_core::operator::Family;
use engine_core::{
    Fault, InputPort, InputType, OperatorConfig, OperatorError, OperatorKind, Placement, PortType,
    PortTypes, Ports, StageContext, StageEvent, StageIo,
};
use schemars::JsonSchema;
use schemas::TableName;
use serde::{Deserialize, Serialize};

use candidates::Candidates;
pub use caps::Caps;
use caps::Chosen;
use choose::{Chooser, Dropped};
use contamination::{Evaluation, Found};
use groups::each_prompt;
use prompts::Prompts;
use sources::Sources;
use writer::ExampleWriter;

/// The port of what is left out because of an evaluation set.
const CONTAMINATED: &str = "contaminated";

/// Which correct rollouts become examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Distill {
    /// How many of a prompt's correct rollouts are kept, and which.
    pub keep: Keep,
    /// Whether a rollout must have the required format as well.
    pub require_format: bool,
    /// Leaves out rollouts that are much like one that is kept.
    #[serde(default)]
    pub near_duplicates: Option<NearDuplicates>,
    /// Leaves out what has passages of the evaluation sets on the input `evaluation`, and lists it on the port `contaminated`.
    #[serde(default)]
    pub decontaminate: Option<Decontaminate>,
    /// Most examples by source and in all.
    #[serde(default)]
    pub max: Option<Caps>,
}

/// Which of a prompt's correct rollouts are kept, at most so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Those with the lowest sample index.
    First(u32),
    /// Those with the fewest tokens; among equals the first.
    Shortest(u32),
    /// Drawn by the stage's seed.
    Random(u32),
    /// Those with the highest reward; among equals the first. The only rule that reads the input `scores`, and needs it.
    Best(u32),
    /// The first, then each time the one that is least like those taken, by the Jaccard similarity of their n-grams of words.
    Diverse(u32),
}

/// Near duplicates: texts whose sets of n-grams have a Jaccard similarity from the threshold on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NearDuplicates {
    /// Similarity from which on two texts are near duplicates; 0.8 is usual.
    pub threshold: f64,
    /// Words of an n-gram; 5 is usual.
    pub words: u32,
    /// Where near duplicates are looked for.
    pub within: Scope,
}

/// Where near duplicates are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Among the rollouts of a prompt, exactly: what is like one taken is passed over and the next one is looked at.
    Prompt,
    /// Among the rollouts of a prompt, and then among all examples by MinHash: of two that are alike the one of the earlier prompt
    /// stays, and the other is not replaced. Holds about half a KiB for each example.
    All,
}

/// What counts as a copied passage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Decontaminate {
    /// Words that a question or an answer must have in common with an evaluation question or solution, one after the other; 8
    /// to 13 are usual. Shorter texts must be equal as a whole.
    pub words: u32,
}

impl Keep {
    fn count(self) -> u32 {
        match self {
            Self::First(count)
            | Self::Shortest(count)
            | Self::Random(count)
            | Self::Best(count)
            | Self::Diverse(count) => count,
        }
    }
}

impl OperatorKind for Distill {
    const KIND: &'static str = "distill";
    const VERSION: u32 = 2;
    const FAMILY: Family = Family::Query;
    const PLACEMENT: Placement = Placement::Engine;
    const USES_SEED: bool = true;
    const ABOUT: &'static str = "a model's own correct rollouts as training examples";
}

impl OperatorConfig for Distill {
    fn ports(&self) -> Ports {
        let columns = InputType::columns;
        let rollouts = [
            "prompt_id",
            "sample",
            "text",
            "token_ids",
            "finish_reason",
            "model",
        ];
        let verdicts = ["prompt_id", "sample", "verdict", "format_ok"];
        let evaluation = ["prompt_id", "messages", "solution", "source"];
        let mut prompts = vec!["prompt_id", "messages"];
        if self.max.as_ref().is_some_and(Caps::needs_sources) {
            prompts.push("source");
        }
        let inputs = vec![
            InputPort::new("prompts", columns(TableName::Prompts, &prompts)),
            InputPort::new("rollouts", columns(TableName::Rollouts, &rollouts)).many(),
            InputPort::new("verdicts", columns(TableName::Verdicts, &verdicts)).many(),
            InputPort::new(
                "scores",
                columns(TableName::Scores, &["prompt_id", "sample", "reward"]),
            )
            .optional()
            .many(),
            InputPort::new("evaluation", columns(TableName::Prompts, &evaluation))
                .optional()
                .many(),
        ];
        let mut outputs = vec!["examples"];
        if self.decontaminate.is_some() {
            outputs.push(CONTAMINATED);
        }
        Ports::new(inputs, &outputs)
    }

    fn output_types(&self, inputs: &PortTypes) -> Result<PortTypes, Vec<Fault>> {
        let faults = self.faults(inputs);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut types = PortTypes::from([(
            "examples".to_owned(),
            vec![PortType::table(TableName::Examples)],
        )]);
        if self.decontaminate.is_some() {
            let contaminated = PortType::Table {
                table: TableName::Rows,
                schema: contamination::schema(),
            };
            types.insert(CONTAMINATED.to_owned(), vec![contaminated]);
        }
        Ok(types)
    }

    fn run(&self, context: &StageContext<'_>, io: &mut dyn StageIo) -> Result<(), OperatorError> {
        let evaluation = match self.decontaminate {
            Some(decontaminate) => Some(Evaluation::read(decontaminate.words as usize, io)?),
            None => None,
        };
        let prompts = Prompts::read(self, evaluation.as_ref(), io)?;
        let candidates = Candidates::read(self, &prompts, io)?;
        let numbering = Sources::of(io, "rollouts")?.numbering();
        let mut chooser = Chooser::new(self, context.seed, evaluation.as_ref(), numbering);
        let mut writer = ExampleWriter::new(io)?;
        let mut chosen = Vec::new();
        let caps = self.max.as_ref().filter(|caps| caps.is_any());
        each_prompt(&candidates, io, |io, prompt, rows| {
            let id = prompts.index.id(prompt);
            let kept = chooser.choose(id, prompts.salts(prompt), &candidates.rewards, rows);
            if caps.is_none() {
                return writer.write(prompt, kept, io);
            }
            chosen.extend(kept.into_iter().map(|row| Chosen {
                number: row.number,
                prompt,
                sample: row.sample,
            }));
            Ok(())
        })?;
        let mut over_caps = 0;
        if let Some(caps) = caps {
            let before = chosen.len() as u64;
            let id = |prompt| prompts.index.id(prompt);
            let source = |prompt| prompts.source(prompt);
            let kept = caps.kept(context.seed, chosen, candidates.pairs.len(), id, source);
            let left = candidates.only(&kept);
            over_caps = before - left.pairs.len() as u64;
            each_prompt(&left, io, |io, prompt, rows| writer.write(prompt, rows, io))?;
        }
        writer.flush(io)?;
        let (dropped, mut found) = (chooser.dropped, chooser.found);
        tell(io, &candidates, &dropped, over_caps, writer.written);
        if let Some(evaluation) = &evaluation {
            found.splice(0..0, prompts.contaminated);
            tell_contaminated(io, evaluation, &found);
            io.write(CONTAMINATED, evaluation.table(&found)?)?;
        }
        Ok(())
    }
}

impl Distill {
    fn uses_scores(&self) -> bool {
        matches!(self.keep, Keep::Best(_))
    }

    fn faults(&self, inputs: &PortTypes) -> Vec<Fault> {
        let is_connected = |port: &str| inputs.get(port).is_some_and(|types| !types.is_empty());
        let mut faults = Vec::new();
        if self.keep.count() == 0 {
            faults.push(
                Fault::at("wrong-value", "keep", "`keep` keeps 0 rollouts of a prompt")
                    .with_help("write 1 or more"),
            );
        }
        if self.uses_scores() && !is_connected("scores") {
            let message = "`best` goes by reward, and the input `scores` is not connected";
            faults.push(Fault::at("missing-input", "keep", message).with_help(
                "connect a `score` stage as `scores`, or keep the first or the shortest",
            ));
        }
        let count = |port: &str| inputs.get(port).map_or(0, Vec::len);
        let rollouts = count("rollouts");
        for port in ["verdicts", "scores"] {
            let is_read = port == "verdicts" || self.uses_scores();
            if is_read && is_connected(port) && is_connected("rollouts") && count(port) != rollouts
            {
                let message = format!(
                    "`rollouts` has {rollouts} tables and `{port}` has {}",
                    count(port)
                );
                let help = format!(
                    "name the {port} of each table of rollouts, in the same order, such as `rollouts: [a, b]` and `{port}: [{port}_a, {port}_b]`"
                );
                faults.push(Fault::new("wrong-inputs", message).with_help(help));
            }
        }
        let mut wrong = |key: &str, inner: &str, message: String, help: &str| {
            let mut fault = Fault::at("wrong-value", key, message).with_help(help);
            fault.path.push(inner.to_owned());
            faults.push(fault);
        };
        if let Some(near) = self.near_duplicates {
            if !(near.threshold > 0.0 && near.threshold <= 1.0) {
                let message = format!("`threshold` is {}", near.threshold);
                let help = "write a similarity above 0 and up to 1, such as 0.8";
                wrong("near-duplicates", "threshold", message, help);
            }
            if near.words == 0 {
                let message = "n-grams have 0 words".to_owned();
                wrong(
                    "near-duplicates",
                    "words",
                    message,
                    "write 1 or more, such as 5",
                );
            }
        }
        if self
            .decontaminate
            .is_some_and(|decontaminate| decontaminate.words == 0)
        {
            let message = "n-grams have 0 words".to_owned();
            wrong(
                "decontaminate",
                "words",
                message,
                "write 1 or more, such as 10",
            );
        }
        faults.extend(self.max.as_ref().and_then(Caps::fault));
        match (&self.decontaminate, is_connected("evaluation")) {
            (Some(_), false) => faults.push(
                Fault::at(
                    "missing-input",
                    "decontaminate",
                    "the input `evaluation` is not connected",
                )
                .with_help("connect the evaluation prompts, such as `evaluation: [test]`"),
            ),
            (None, true) => faults.push(
                Fault::new(
                    "unused-input",
                    "the input `evaluation` is read only with `decontaminate`",
                )
                .with_help("write `decontaminate: { words: 10 }`, or leave the input out"),
            ),
            _ => {}
        }
        faults
    }
}

/// Says what became of the candidates.
fn tell(
    io: &dyn StageIo,
    candidates: &Candidates,
    dropped: &Dropped,
    over_caps: u64,
    written: u64,
) {
    let causes = [
        (dropped.repeats, "exact repeats"),
        (dropped.contaminated, "with passages of evaluation sets"),
        (dropped.alike, "near duplicates within their prompt"),
        (
            dropped.alike_elsewhere,
            "near duplicates of other prompts' examples",
        ),
        (dropped.surplus, "more than are kept of a prompt"),
        (over_caps, "over a cap"),
    ];
    let causes = causes.iter().filter(|(count, _)| *count > 0);
    let causes: Vec<String> = causes
        .map(|(count, cause)| format!("{count} {cause}"))
        .collect();
    let all = candidates.pairs.len();
    let mut note = format!("{written} of {all} candidates kept");
    if !causes.is_empty() {
        note.push_str("; dropped: ");
        note.push_str(&causes.join(", "));
    }
    io.event(StageEvent::Note(note));
}

/// Says, for the record of the run, how much is contaminated.
fn tell_contaminated(io: &dyn StageIo, evaluation: &Evaluation, found: &[Found]) {
    if found.is_empty() {
        return;
    }
    let questions = found.iter().filter(|found| found.sample.is_none()).count();
    let message = format!(
        "{questions} prompts and {} answers of other prompts have passages of {} evaluation rows; `{CONTAMINATED}` lists them",
        found.len() - questions,
        evaluation.len(),
    );
    io.event(StageEvent::Warning(message));
}

#[cfg(test)]
mod tests;
