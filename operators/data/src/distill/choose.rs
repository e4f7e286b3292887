//! Which candidates of a prompt are kept: repeats and copies out first, then as many as are asked for, in the order of the rule.

use std::cmp::Reverse;
use std::collections::HashSet;

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use engine_core::seed;

use super::contamination::{Evaluation, Found};
use super::groups::Row;
use super::sources::Numbering;
use super::{Distill, Keep, Scope};
use crate::minhash::Similar;
use crate::ngram::{Words, jaccard};

/// Candidates of a prompt up to which all pairs are compared, and no set is made.
const FEW: usize = 48;
/// Words of an n-gram by which the most diverse are told, where near duplicates are not looked for.
const DIVERSE_WORDS: usize = 3;

/// What was left out, and why.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dropped {
    /// Repeats of another rollout of the prompt, token by token.
    pub(super) repeats: u64,
    /// Rollouts with a passage of an evaluation set.
    pub(super) contaminated: u64,
    /// Near duplicates within a prompt that came before enough were found.
    pub(super) alike: u64,
    /// Near duplicates of an example of another prompt.
    pub(super) alike_elsewhere: u64,
    /// More than are kept of a prompt.
    pub(super) surplus: u64,
}

/// Chooses prompt after prompt.
#[derive(Debug)]
pub(super) struct Chooser<'a> {
    config: &'a Distill,
    seed: u64,
    evaluation: Option<&'a Evaluation>,
    kept: Option<Similar>,
    numbering: Numbering,
    pub(super) dropped: Dropped,
    pub(super) found: Vec<Found>,
}

/// What a completion is: its tokens, or its text where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Content<'a> {
    Tokens(&'a [u32]),
    Text(&'a str),
}

impl Content<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Text(text) => text.chars().count(),
        }
    }
}

fn text(row: &Row) -> &str {
    row.batch.column(0).as_string::<i64>().value(row.place)
}

fn content(row: &Row) -> Content<'_> {
    let lists = row.batch.column(1).as_list::<i64>();
    if lists.is_null(row.place) {
        return Content::Text(text(row));
    }
    let offsets = lists.value_offsets();
    let tokens = lists.values().as_primitive::<UInt32Type>().values();
    Content::Tokens(&tokens[offsets[row.place] as usize..offsets[row.place + 1] as usize])
}

impl<'a> Chooser<'a> {
    pub(super) fn new(
        config: &'a Distill,
        seed: u64,
        evaluation: Option<&'a Evaluation>,
        numbering: Numbering,
    ) -> Self {
        let near = config.near_duplicates.as_ref();
        Self {
            config,
            seed,
            evaluation,
            kept: near
                .filter(|near| near.within == Scope::All)
                .map(|near| Similar::new(near.threshold)),
            numbering,
            dropped: Dropped::default(),
            found: Vec::new(),
        }
    }

    /// The candidates that are kept, sorted by sample, as they come.
    pub(super) fn choose(
        &mut self,
        id: &str,
        salts: &[u64],
        rewards: &[f64],
        rows: Vec<Row>,
    ) -> Vec<Row> {
        let mut rows = self.without_repeats(rows);
        if let Some(evaluation) = self.evaluation {
            rows.retain(|row| {
                let Some(hit) = evaluation.find(&Words::of(text(row)), salts) else {
                    return true;
                };
                self.dropped.contaminated += 1;
                self.found.push(Found {
                    prompt_id: id.to_owned(),
                    sample: Some(self.numbering.sample(row.sample)),
                    hit,
                });
                false
            });
        }
        self.rank(id, rewards, &mut rows);
        let mut chosen = self.pick(rows);
        chosen.sort_unstable_by_key(|row| row.sample);
        chosen
    }

    fn without_repeats(&mut self, rows: Vec<Row>) -> Vec<Row> {
        let before = rows.len();
        let is_first: Vec<bool> = if before <= FEW {
            let contents: Vec<Content<'_>> = rows.iter().map(content).collect();
            (0..before)
                .map(|place| !contents[..place].contains(&contents[place]))
                .collect()
        } else {
            let mut seen = HashSet::with_capacity(before);
            rows.iter().map(|row| seen.insert(content(row))).collect()
        };
        let firsts = rows.into_iter().zip(is_first);
        let left: Vec<Row> = firsts
            .filter_map(|(row, is_first)| is_first.then_some(row))
            .collect();
        self.dropped.repeats += (before - left.len()) as u64;
        left
    }

    /// Sorts by the rule; the rows are sorted by sample before.
    fn rank(&self, id: &str, rewards: &[f64], rows: &mut [Row]) {
        match self.config.keep {
            Keep::First(_) | Keep::Diverse(_) => {}
            Keep::Shortest(_) => rows.sort_by_cached_key(|row| content(row).len()),
            Keep::Random(_) => {
                rows.sort_by_cached_key(|row| {
                    seed::derive(self.seed, &format!("{id} {}", row.sample))
                });
            }
            Keep::Best(_) => {
                // A total order, as for the bits of the numbers.
                rows.sort_by(|left, right| rewards[right.number].total_cmp(&rewards[left.number]));
            }
        }
    }

    /// Takes as many as are asked for from the front, passing over what is like something taken.
    fn pick(&mut self, rows: Vec<Row>) -> Vec<Row> {
        let count = self.config.keep.count() as usize;
        let near = self.config.near_duplicates.as_ref();
        let is_diverse = matches!(self.config.keep, Keep::Diverse(_));
        let total = rows.len();
        if !is_diverse && near.is_none() {
            let mut rows = rows;
            rows.truncate(count);
            self.dropped.surplus += (total - rows.len()) as u64;
            return rows;
        }
        let words = near.map_or(DIVERSE_WORDS, |near| near.words as usize);
        let threshold = near.map_or(f64::INFINITY, |near| near.threshold);
        let (taken, alike) = if is_diverse {
            most_diverse(rows, count, words, threshold)
        } else {
            first_unlike(rows, count, words, threshold)
        };
        self.dropped.alike += alike;
        self.dropped.surplus += (total - taken.len()) as u64 - alike;
        let Some(kept) = &mut self.kept else {
            return taken.into_iter().map(|(row, _)| row).collect();
        };
        let mut chosen = Vec::with_capacity(taken.len());
        // What this prompt keeps has been compared exactly, so that it is added after all of it was looked up.
        let mut sketches = Vec::with_capacity(taken.len());
        for (row, shingles) in taken {
            let sketch = kept.sketch(&shingles);
            if kept.has(&sketch) {
                self.dropped.alike_elsewhere += 1;
            } else {
                sketches.push(sketch);
                chosen.push(row);
            }
        }
        for sketch in &sketches {
            kept.add(sketch);
        }
        chosen
    }
}

/// The first rows of which none is like one before it, with their n-grams, and how many were passed over.
fn first_unlike(
    rows: Vec<Row>,
    count: usize,
    words: usize,
    threshold: f64,
) -> (Vec<(Row, Vec<u64>)>, u64) {
    let mut taken: Vec<(Row, Vec<u64>)> = Vec::with_capacity(count.min(rows.len()));
    let mut alike = 0;
    for row in rows {
        if taken.len() == count {
            break;
        }
        let shingles = Words::of(text(&row)).shingles(words);
        if taken
            .iter()
            .any(|(_, other)| jaccard(&shingles, other) >= threshold)
        {
            alike += 1;
        } else {
            taken.push((row, shingles));
        }
    }
    (taken, alike)
}

/// The first row, then each time the one that is farthest from all taken; among equals the first. Every row is compared with
/// every taken one once.
fn most_diverse(
    rows: Vec<Row>,
    count: usize,
    words: usize,
    threshold: f64,
) -> (Vec<(Row, Vec<u64>)>, u64) {
    let shingles = |row: &Row| Words::of(text(row)).shingles(words);
    // The similarity to the nearest of those taken goes with each row.
    let mut left: Vec<(Row, Vec<u64>, f64)> = rows
        .into_iter()
        .map(|row| {
            let shingles = shingles(&row);
            (row, shingles, f64::NEG_INFINITY)
        })
        .collect();
    let mut taken: Vec<(Row, Vec<u64>)> = Vec::with_capacity(count.min(left.len()));
    while taken.len() < count {
        let farthest = left
            .iter()
            .enumerate()
            .min_by_key(|(place, (_, _, nearest))| {
                (ordered(*nearest), Reverse(left.len() - place))
            });
        let Some((place, (_, _, nearest))) = farthest else {
            break;
        };
        if *nearest >= threshold {
            break;
        }
        let (row, shingles, _) = left.remove(place);
        for (_, other, nearest) in &mut left {
            *nearest = nearest.max(jaccard(other, &shingles));
        }
        taken.push((row, shingles));
    }
    let alike = left.iter().filter(|(_, _, nearest)| *nearest >= threshold);
    let alike = if taken.len() < count {
        alike.count()
    } else {
        0
    };
    (taken, alike as u64)
}

/// A number whose order is that of the similarities, which are not negative but before anything is taken.
fn ordered(similarity: f64) -> u64 {
    similarity.max(0.0).to_bits()
}
