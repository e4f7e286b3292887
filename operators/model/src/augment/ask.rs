//! Asking the expert, and which of its answers are kept.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use engine_core::{FailedRow, MapOutput, MapPart, MapTask, OperatorError, StageContext, StageView};
use operators_verdict::Outcome;
use operators_verifier::{Judged, Question, Verifier};
use schemas::TableName;

use super::outcome::{Answers, Kept, Refusals};
use super::rewrite::rewritten;
use super::worked::Worked;
use super::{Augment, ExpertModel, Hint};
use crate::endpoint::{Answerer, EndpointSampler};
use crate::part_sampler::PartSampler;
use crate::processor::Processor;
use crate::prompt_rows::{ContentPart, PromptRow, prompt_rows};
use crate::rollout::model_digest;
use crate::sampling::{Sampled, SamplingPlan};

/// Who answers, started.
pub(super) enum Expert<'a> {
    Model(Box<StartedModel<'a>>),
    Worked(Worked),
}

/// An expert model that is loaded.
pub(super) struct StartedModel<'a> {
    answerer: Answerer<'a>,
    digest: String,
    attempts: u32,
    keep: u32,
    hint: Option<Hint>,
    /// Whether the student reads the expert's tokens alike.
    keep_tokens: bool,
}

impl ExpertModel {
    pub(super) fn start<'a>(
        &self,
        context: &StageContext<'_>,
        view: &'a dyn StageView,
    ) -> Result<StartedModel<'a>, OperatorError> {
        let plan = SamplingPlan {
            temperature: self.temperature,
            keys: self.keys(),
            max_new_tokens: self.max_new_tokens,
            max_concurrent: self.max_concurrent,
            seed: context.seed,
            exact_ranges: false,
        };
        let started = |answerer, digest, keep_tokens| StartedModel {
            answerer,
            digest,
            attempts: self.attempts,
            keep: self.keep,
            hint: self.hint.clone(),
            keep_tokens,
        };
        if let Some(endpoint) = &self.endpoint {
            let server = EndpointSampler::start(endpoint, &plan, view)?;
            let name = server.name().to_owned();
            // Whose tokens they are is not known.
            return Ok(started(Answerer::Server(Box::new(server)), name, false));
        }
        let sampler = PartSampler::load("model", self.precision, plan, context, view)?;
        let keep_tokens = !view.inputs("student").is_empty()
            && same_tokenizer(&view.model_folder("student")?, sampler.processor())?;
        let answerer = Answerer::Model(Box::new(Mutex::new(sampler)));
        Ok(started(answerer, model_digest(view, "model")?, keep_tokens))
    }
}

pub(super) struct AugmentTask<'a> {
    pub(super) config: &'a Augment,
    pub(super) expert: Expert<'a>,
    pub(super) verifier: Verifier,
    pub(super) view: &'a dyn StageView,
}

/// An answer on its way to become an example.
struct Attempt {
    prompt: usize,
    text: String,
    token_ids: Option<Vec<u32>>,
    is_complete: bool,
    is_hinted: bool,
}

impl Drop for AugmentTask<'_> {
    /// All parts were judged: says what it took.
    fn drop(&mut self) {
        self.verifier.tell_account(self.view);
    }
}

impl MapTask for AugmentTask<'_> {
    fn apply(&self, part: &MapPart<'_>) -> Result<MapOutput, OperatorError> {
        let table = prompts_table(part.rows)?;
        let rows = prompt_rows(&table)?;
        let mut answers = Answers {
            refusals: vec![Refusals::default(); rows.len()],
            ..Answers::default()
        };
        let asked = self.askable(&rows, &mut answers);
        match &self.expert {
            Expert::Model(model) => self.ask_model(model, &rows, &asked, &mut answers)?,
            Expert::Worked(worked) => {
                let mut attempts = Vec::new();
                for prompt in asked {
                    attempts.extend(worked.of(&rows[prompt]).iter().map(|text| Attempt {
                        prompt,
                        text: text.clone(),
                        token_ids: None,
                        is_complete: true,
                        is_hinted: false,
                    }));
                }
                self.keep(&rows, attempts, worked.keep, &mut answers)?;
            }
        }
        answers.failed.sort_by_key(|failure| failure.row);
        answers.failed.dedup_by_key(|failure| failure.row);
        let failed: HashSet<usize> = answers.failed.iter().map(|failure| failure.row).collect();
        // A row that failed has no output, whatever was answered before it failed.
        answers.kept.retain(|kept| !failed.contains(&kept.prompt));
        answers.kept.sort_by_key(|kept| kept.prompt);
        Ok(MapOutput {
            slices: vec![answers.ports(&table, &rows)?],
            failed: answers.failed,
            tokens: answers.tokens,
        })
    }
}

impl AugmentTask<'_> {
    /// The prompts whose answers can be verified. One without a gold answer fails; one whose gold answer nobody can read is not
    /// worth asking for.
    fn askable(&self, rows: &[PromptRow], answers: &mut Answers) -> Vec<usize> {
        let mut asked = Vec::new();
        for (row, prompt) in rows.iter().enumerate() {
            if self.config.verify.needs_gold()
                && let Err(error) = prompt.gold()
            {
                answers.failed.push(FailedRow {
                    row,
                    error: error.to_string(),
                });
            } else if let Err(error) = self.config.verify.check_gold(prompt.answer.as_deref()) {
                answers.refusals[row].not_asked(format!("its gold answer cannot be used: {error}"));
            } else {
                asked.push(row);
            }
        }
        asked
    }

    fn ask_model(
        &self,
        model: &StartedModel<'_>,
        rows: &[PromptRow],
        asked: &[usize],
        answers: &mut Answers,
    ) -> Result<(), OperatorError> {
        answers.model = Some(model.digest.clone());
        let plain = |row: &usize| rows[*row].clone();
        let questions = asked.iter().map(plain).collect();
        let attempts = sample(model, asked, questions, 0..model.attempts, answers)?;
        self.keep(rows, attempts, model.keep, answers)?;
        let Some(hint) = &model.hint else {
            return Ok(());
        };
        let settled: HashSet<usize> = (answers.kept.iter().map(|kept| kept.prompt))
            .chain(answers.failed.iter().map(|failure| failure.row))
            .collect();
        let open = asked.iter().filter(|row| !settled.contains(row));
        let (asked, questions): (Vec<usize>, Vec<PromptRow>) = open
            .filter_map(|row| Some((*row, with_hint(&rows[*row], &hint.text)?)))
            .unzip();
        let range = model.attempts..model.attempts + hint.attempts;
        let mut attempts = sample(model, &asked, questions, range, answers)?;
        for attempt in &mut attempts {
            attempt.is_hinted = true;
        }
        self.keep(rows, attempts, model.keep, answers)
    }

    /// Keeps at most so many of the right answers of each prompt: the first.
    fn keep(
        &self,
        rows: &[PromptRow],
        attempts: Vec<Attempt>,
        keep: u32,
        answers: &mut Answers,
    ) -> Result<(), OperatorError> {
        let mut complete = Vec::new();
        for attempt in attempts {
            if attempt.is_complete {
                complete.push(attempt);
            } else {
                answers.refusals[attempt.prompt].add("cut at the limit of tokens");
            }
        }
        let judged = self.judge(rows, &complete)?;
        // Prompts with an answer that a judge could not be asked about, and why.
        let mut open: BTreeMap<usize, String> = BTreeMap::new();
        let mut right = Vec::new();
        for (attempt, judged) in complete.into_iter().zip(judged) {
            if judged.is_open {
                open.insert(attempt.prompt, judged.reason.into_owned());
                continue;
            }
            match self.chosen(attempt, &judged) {
                Ok(attempt) => right.push(attempt),
                Err((prompt, why)) => answers.refusals[prompt].add(why),
            }
        }
        if self.config.rewrite.is_some() {
            // What is learnt is what was verified.
            let judged = self.judge(rows, &right)?;
            let mut judged = judged.into_iter();
            right.retain(|attempt| {
                let judged = judged.next();
                let is_right = judged.as_ref().is_some_and(|judged| self.accepts(judged));
                match judged {
                    Some(judged) if judged.is_open => {
                        open.insert(attempt.prompt, judged.reason.into_owned());
                    }
                    _ if !is_right => answers.refusals[attempt.prompt]
                        .add("right, and not any more when rewritten"),
                    _ => {}
                }
                is_right
            });
        }
        let mut counts = vec![0; rows.len()];
        for attempt in right {
            counts[attempt.prompt] += 1;
            if counts[attempt.prompt] <= keep {
                answers.kept.push(Kept {
                    prompt: attempt.prompt,
                    text: attempt.text,
                    token_ids: attempt.token_ids,
                    is_hinted: attempt.is_hinted,
                });
            }
        }
        // One right answer is an example, whatever the others are.
        let failed = open
            .into_iter()
            .filter(|(prompt, _)| counts[*prompt] == 0)
            .map(|(row, why)| FailedRow {
                row,
                error: rows[row].fault(&why).to_string(),
            });
        answers.failed.extend(failed);
        Ok(())
    }

    /// An answer that is right, in the form to learn; or the prompt, and why it is not taken.
    fn chosen(&self, attempt: Attempt, judged: &Judged) -> Result<Attempt, (usize, &'static str)> {
        let refused = |why| Err((attempt.prompt, why));
        match judged.verdict.outcome {
            Outcome::Correct => {}
            Outcome::Wrong => return refused("wrong"),
            Outcome::Unparsed => return refused("without an answer that can be found"),
            Outcome::TimedOut => return refused("not judged in time"),
            Outcome::Failed => return refused("that could not be judged"),
        }
        let lower = attempt.text.to_lowercase();
        if self
            .config
            .avoid
            .iter()
            .any(|text| lower.contains(&text.to_lowercase()))
        {
            return refused("right, with a text that is to be avoided");
        }
        match &self.config.rewrite {
            None if self.accepts(judged) => Ok(attempt),
            None => refused("right, in another form than the required one"),
            Some(template) => {
                match rewritten(template, &attempt.text, judged.verdict.extracted.as_deref()) {
                    Some(text) => Ok(Attempt {
                        text,
                        token_ids: None,
                        ..attempt
                    }),
                    None => refused("right, without the reasoning or answer to rewrite it"),
                }
            }
        }
    }

    fn accepts(&self, judged: &Judged) -> bool {
        judged.verdict.outcome == Outcome::Correct
            && (judged.verdict.format_ok || !self.config.require_format)
    }

    fn judge(
        &self,
        rows: &[PromptRow],
        attempts: &[Attempt],
    ) -> Result<Vec<Judged>, OperatorError> {
        let reads_question = self.config.verify.reads_question();
        let asked: Vec<String> = rows
            .iter()
            .map(|row| {
                if reads_question {
                    row.question()
                } else {
                    String::new()
                }
            })
            .collect();
        let questions: Vec<Question<'_>> = attempts
            .iter()
            .map(|attempt| Question {
                prompt_id: &rows[attempt.prompt].prompt_id,
                question: &asked[attempt.prompt],
                gold: rows[attempt.prompt].answer.as_deref(),
                text: &attempt.text,
            })
            .collect();
        self.verifier.judge(&questions, self.view)
    }
}

/// Answers to these questions, which stand for the rows at `asked`.
fn sample(
    model: &StartedModel<'_>,
    asked: &[usize],
    questions: Vec<PromptRow>,
    range: Range<u32>,
    answers: &mut Answers,
) -> Result<Vec<Attempt>, OperatorError> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let samples = (model.answerer).sample(&questions, std::slice::from_ref(&range))?;
    answers.tokens += samples.tokens();
    answers
        .failed
        .extend(samples.failed.into_iter().map(|failure| FailedRow {
            row: asked[failure.row],
            ..failure
        }));
    let attempt = |answer: Sampled| Attempt {
        prompt: asked[answer.prompt],
        is_complete: answer.is_complete(),
        // Tokens with a stop string are not those of the text; the text is tokenised when it is learnt.
        token_ids: (model.keep_tokens && !answer.is_cut).then_some(answer.completion.token_ids),
        text: answer.text,
        is_hinted: false,
    };
    Ok(samples.ranges.into_iter().flatten().map(attempt).collect())
}

/// The prompt with a hint after its last question; None when the hint needs what the prompt does not have.
fn with_hint(row: &PromptRow, hint: &str) -> Option<PromptRow> {
    let mut text = hint.to_owned();
    for (mark, value) in [("{solution}", &row.solution), ("{answer}", &row.answer)] {
        if text.contains(mark) {
            text = text.replace(mark, value.as_deref()?);
        }
    }
    let mut hinted = row.clone();
    let turn = (hinted.messages.iter_mut()).rfind(|message| message.role == "user")?;
    turn.content.push(ContentPart::Text(format!("\n\n{text}")));
    Some(hinted)
}

fn same_tokenizer(folder: &Path, expert: &Processor) -> Result<bool, OperatorError> {
    Ok(Processor::load(folder)?.tokenizer_digest() == expert.tokenizer_digest())
}

/// The rows with the columns of the table, in its order, and no others.
fn prompts_table(batch: &RecordBatch) -> Result<RecordBatch, OperatorError> {
    let schema: SchemaRef = TableName::Prompts.schema();
    let columns: Option<Vec<ArrayRef>> = schema
        .fields()
        .iter()
        .map(|field| batch.column_by_name(field.name()).cloned())
        .collect();
    let columns =
        columns.ok_or_else(|| OperatorError::Internal("a prompts table lacks a column".into()))?;
    Ok(RecordBatch::try_new(schema, columns)?)
}
