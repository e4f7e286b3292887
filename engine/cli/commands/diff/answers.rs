//! Answers to the same prompts: both texts, both verdicts, what flipped, and the change of the pass rate.

use engine_core::Dataset;
use engine_query::{Order, QuerySession, rows_to_json};
use engine_store::{Manifest, Store};
use schemas::TableName;
use serde::Serialize;
use serde_json::{Map, Value};

use super::sides::{Pair, Side, dataset};
use super::statistics::PassRateChange;

/// Verdicts that count.
const USABLE: &str = "('correct', 'wrong', 'unparsed')";

/// Answers to the same prompts.
#[derive(Debug, Serialize)]
pub(super) struct AnswersDiff {
    /// Answers that both sides have: equal prompt, sample and, in training, step.
    pub(super) both: u64,
    pub(super) only_a: u64,
    pub(super) only_b: u64,
    /// Of both: correct in A and not in B.
    pub(super) right_to_wrong: u64,
    /// Of both: correct in B and not in A.
    pub(super) wrong_to_right: u64,
    /// Of both: without a usable verdict on a side; they count for neither.
    pub(super) masked: u64,
    /// Of both: with the very same text; absent when the texts are not there.
    pub(super) same_text: Option<u64>,
    /// Absent when no prompt has a usable verdict on both sides.
    pub(super) pass_rate: Option<PassRateChange>,
    /// Answers that flipped, then those that differ otherwise.
    pub(super) rows: Vec<AnswerDiff>,
}

/// Two answers to one prompt.
#[derive(Debug, Serialize)]
pub(super) struct AnswerDiff {
    pub(super) step: Option<i64>,
    pub(super) prompt_id: String,
    pub(super) sample: u64,
    /// The right answer, if it is known.
    pub(super) answer: Option<String>,
    pub(super) a: Answer,
    pub(super) b: Answer,
}

/// One answer.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) verdict: String,
    pub(super) extracted: Option<String>,
    /// Why, where the verifier said it.
    pub(super) reason: Option<String>,
    pub(super) text: Option<String>,
}

/// The tables of one side.
struct Tables {
    verdicts: Dataset,
    texts: Option<Dataset>,
    prompts: Option<Dataset>,
    has_step: bool,
    has_extracted: bool,
    has_reason: bool,
}

/// Compares the answers of two results; none when one of them has no verdicts.
pub(super) fn compare(
    store: &Store,
    pair: &Pair<'_>,
    limit: usize,
) -> anyhow::Result<Option<AnswersDiff>> {
    let (Some(a), Some(b)) = (tables(store, &pair.a)?, tables(store, &pair.b)?) else {
        return Ok(None);
    };
    let query = Query::new(store, &a, &b)?;
    let pass_rate = query.pass_rate()?;
    let mut diff = query.counts()?;
    diff.pass_rate = pass_rate;
    if limit > 0 {
        diff.rows = query.rows(limit)?;
    }
    Ok(Some(diff))
}

/// Finds verdicts, texts and prompts around a result.
fn tables(store: &Store, side: &Side<'_>) -> anyhow::Result<Option<Tables>> {
    let own = side.datasets().find(|dataset| has(store, dataset, VERDICT));
    let rollouts = side
        .datasets()
        .find(|dataset| dataset.table == TableName::Rollouts);
    if own.is_none() && rollouts.is_none() {
        return Ok(None);
    }
    let neighbours = side.neighbours(store)?;
    let (verdicts, maker) = match own {
        Some(dataset) => (dataset.clone(), &side.manifest),
        // Rollouts: whoever checked them, in the same run.
        None => {
            let Some(rollouts) = rollouts else {
                return Ok(None);
            };
            let checked = neighbours.iter().find_map(|manifest| {
                let is_read =
                    input_digests(manifest).any(|digest| digest == rollouts.digest.as_str());
                let mut outputs = manifest.outputs.values().filter_map(dataset);
                let verdicts = outputs.find(|dataset| dataset.table == TableName::Verdicts);
                verdicts.filter(|_| is_read).map(|found| (found, manifest))
            });
            let Some((verdicts, maker)) = checked else {
                return Ok(None);
            };
            (verdicts.clone(), maker)
        }
    };
    let texts = if has(store, &verdicts, &["text"]) {
        Some(verdicts.clone())
    } else {
        made_from(maker, &neighbours, TableName::Rollouts)
    };
    let schema = store.schema(&verdicts)?;
    Ok(Some(Tables {
        texts,
        prompts: made_from(maker, &neighbours, TableName::Prompts),
        has_step: schema.field_with_name("step").is_ok(),
        has_extracted: schema.field_with_name("extracted").is_ok(),
        has_reason: schema.field_with_name("reason").is_ok(),
        verdicts,
    }))
}

/// Columns without which there is nothing to compare.
const VERDICT: &[&str] = &["prompt_id", "sample", "verdict"];

fn has(store: &Store, dataset: &Dataset, columns: &[&str]) -> bool {
    store.schema(dataset).is_ok_and(|schema| {
        let mut columns = columns.iter();
        columns.all(|column| schema.field_with_name(column).is_ok())
    })
}

fn input_digests(manifest: &Manifest) -> impl Iterator<Item = &str> {
    let ports = manifest.material["inputs"].as_object();
    let lists = ports.into_iter().flat_map(|ports| ports.values());
    lists
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(Value::as_str)
}

/// The table of this kind that a result was made from.
fn made_from(maker: &Manifest, neighbours: &[Manifest], table: TableName) -> Option<Dataset> {
    let outputs = || {
        let artifacts = neighbours
            .iter()
            .flat_map(|manifest| manifest.outputs.values());
        artifacts
            .filter_map(dataset)
            .filter(|dataset| dataset.table == table)
    };
    input_digests(maker)
        .find_map(|digest| outputs().find(|dataset| dataset.digest.as_str() == digest))
        .cloned()
}

/// SQL over both sides.
struct Query {
    session: QuerySession,
    /// Columns that name an answer.
    keys: Vec<&'static str>,
    has_texts: bool,
    has_prompts: bool,
    /// Expression of the extracted answer on each side.
    extracted: [&'static str; 2],
    /// Expression of the reason on each side.
    reasons: [&'static str; 2],
}

impl Query {
    fn new(store: &Store, a: &Tables, b: &Tables) -> anyhow::Result<Self> {
        let session = QuerySession::new(Order::Any)?;
        let open = |name: &str, dataset: &Dataset| {
            let parts = dataset.parts.iter();
            let urls = parts.map(|part| store.object_url(&part.path)).collect();
            session.register_parquet(name, urls)
        };
        open("a", &a.verdicts)?;
        open("b", &b.verdicts)?;
        let has_texts = match (&a.texts, &b.texts) {
            (Some(a), Some(b)) => {
                open("ta", a)?;
                open("tb", b)?;
                true
            }
            _ => false,
        };
        let prompts = b.prompts.as_ref().or(a.prompts.as_ref());
        if let Some(prompts) = prompts {
            open("p", prompts)?;
        }
        let mut keys = vec!["prompt_id", "sample"];
        if a.has_step && b.has_step {
            keys.insert(0, "step");
        }
        let extracted = |tables: &Tables, name| if tables.has_extracted { name } else { "null" };
        let reason = |tables: &Tables, name| if tables.has_reason { name } else { "null" };
        Ok(Self {
            keys,
            has_texts,
            has_prompts: prompts.is_some(),
            extracted: [extracted(a, "a.extracted"), extracted(b, "b.extracted")],
            reasons: [reason(a, "a.reason"), reason(b, "b.reason")],
            session,
        })
    }

    fn ask(&self, text: &str) -> anyhow::Result<Vec<Map<String, Value>>> {
        let batches = self.session.collect(self.session.sql(text)?)?;
        Ok(rows_to_json(&batches)?)
    }

    /// Equality of the keys of two tables.
    fn on(&self, left: &str, right: &str) -> String {
        let keys = self
            .keys
            .iter()
            .map(|key| format!("{left}.{key} = {right}.{key}"));
        keys.collect::<Vec<_>>().join(" and ")
    }

    fn text_joins(&self) -> String {
        if !self.has_texts {
            return String::new();
        }
        format!(
            "left join ta on {} left join tb on {}",
            self.on("a", "ta"),
            self.on("b", "tb")
        )
    }

    fn counts(&self) -> anyhow::Result<AnswersDiff> {
        let same_text = if self.has_texts {
            "sum(case when ta.text = tb.text then 1 else 0 end)"
        } else {
            "null"
        };
        let text = format!(
            "select count(*) as pairs, {same_text} as same_text,
               sum(case when a.verdict = 'correct' and b.verdict in ('wrong', 'unparsed') then 1 else 0 end) as lost,
               sum(case when b.verdict = 'correct' and a.verdict in ('wrong', 'unparsed') then 1 else 0 end) as gained,
               sum(case when a.verdict in {USABLE} and b.verdict in {USABLE} then 0 else 1 end) as masked
             from a join b on {} {}",
            self.on("a", "b"),
            self.text_joins()
        );
        let found = self.ask(&text)?;
        let only = |table: &str, other: &str| -> anyhow::Result<u64> {
            let on = self.on(table, other);
            let rows = self.ask(&format!(
                "select count(*) as n from {table} left anti join {other} on {on}"
            ))?;
            Ok(number(rows.first(), "n"))
        };
        let row = found.first();
        Ok(AnswersDiff {
            both: number(row, "pairs"),
            only_a: only("a", "b")?,
            only_b: only("b", "a")?,
            right_to_wrong: number(row, "lost"),
            wrong_to_right: number(row, "gained"),
            masked: number(row, "masked"),
            same_text: self.has_texts.then(|| number(row, "same_text")),
            pass_rate: None,
            rows: Vec::new(),
        })
    }

    fn pass_rate(&self) -> anyhow::Result<Option<PassRateChange>> {
        // In training a prompt counts once for each step.
        let groups: Vec<&str> = self
            .keys
            .iter()
            .copied()
            .filter(|key| *key != "sample")
            .collect();
        let list = groups.join(", ");
        let on: Vec<String> = groups
            .iter()
            .map(|key| format!("x.{key} = y.{key}"))
            .collect();
        let rates = |table: &str| {
            format!(
                "(select {list}, avg(case when verdict = 'correct' then 1.0 else 0.0 end) as rate
                  from {table} where verdict in {USABLE} group by {list})"
            )
        };
        let text = format!(
            "select count(*) as n, avg(x.rate) as a, avg(y.rate) as b, stddev_samp(y.rate - x.rate) as deviation
             from {} x join {} y on {}",
            rates("a"),
            rates("b"),
            on.join(" and ")
        );
        let rows = self.ask(&text)?;
        let prompts = number(rows.first(), "n");
        let value = |name: &str| rows.first().and_then(|row| row.get(name)?.as_f64());
        Ok(match (value("a"), value("b")) {
            (Some(a), Some(b)) if prompts > 0 => {
                Some(PassRateChange::new(prompts, a, b, value("deviation")))
            }
            _ => None,
        })
    }

    fn rows(&self, limit: usize) -> anyhow::Result<Vec<AnswerDiff>> {
        let (texts, text_differs) = if self.has_texts {
            ("ta.text as ta, tb.text as tb", "ta.text <> tb.text")
        } else {
            ("null as ta, null as tb", "false")
        };
        let (answer, prompt_join) = if self.has_prompts {
            ("p.answer", "left join p on p.prompt_id = a.prompt_id")
        } else {
            ("null", "")
        };
        let keys = self.keys.iter().map(|key| format!("a.{key} as {key}"));
        let keys = keys.collect::<Vec<_>>().join(", ");
        let [extracted_a, extracted_b] = self.extracted;
        let [reason_a, reason_b] = self.reasons;
        let text = format!(
            "select {keys}, a.verdict as va, b.verdict as vb, {extracted_a} as xa, {extracted_b} as xb,
               {reason_a} as ra, {reason_b} as rb, {answer} as answer, {texts},
               case when a.verdict = 'correct' and b.verdict in ('wrong', 'unparsed') then 0
                    when b.verdict = 'correct' and a.verdict in ('wrong', 'unparsed') then 0
                    when a.verdict <> b.verdict then 1 else 2 end as weight
             from a join b on {} {} {prompt_join}
             where a.verdict <> b.verdict or {text_differs}
             order by weight, {} limit {limit}",
            self.on("a", "b"),
            self.text_joins(),
            self.keys.join(", ")
        );
        let answer = |row: &Map<String, Value>, side: char| Answer {
            verdict: string(row, &format!("v{side}")).unwrap_or_default(),
            extracted: string(row, &format!("x{side}")),
            reason: string(row, &format!("r{side}")),
            text: string(row, &format!("t{side}")),
        };
        Ok(self
            .ask(&text)?
            .iter()
            .map(|row| AnswerDiff {
                step: row.get("step").and_then(Value::as_i64),
                prompt_id: string(row, "prompt_id").unwrap_or_default(),
                sample: number(Some(row), "sample"),
                answer: string(row, "answer"),
                a: answer(row, 'a'),
                b: answer(row, 'b'),
            })
            .collect())
    }
}

/// A count; sums over no rows are null.
fn number(row: Option<&Map<String, Value>>, name: &str) -> u64 {
    row.and_then(|row| row.get(name)?.as_u64()).unwrap_or(0)
}

fn string(row: &Map<String, Value>, name: &str) -> Option<String> {
    row.get(name)?.as_str().map(str::to_owned)
}
