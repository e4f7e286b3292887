//! Which port a prompt goes to: by exact comparison of its counts with the ends of the bands.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use engine_core::Fault;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fraction, MORE, PASS_RATES, UNDECIDED};

/// Prompts that are in no band.
const OTHERS: &str = "others";
/// Ports where no bands are given.
const STANDARD: [&str; 3] = ["solved", "partial", "failed"];
/// The port of rows that failed, which every stage may have.
const QUARANTINE: &str = "quarantine";
const LONGEST_NAME: usize = 64;

/// A band of pass rates. An end that is left out is 0 or 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Band {
    /// Least pass rate, itself in the band.
    #[serde(default)]
    pub from: Option<Fraction>,
    /// Pass rates above this one, which itself is not in the band.
    #[serde(default)]
    pub above: Option<Fraction>,
    /// Greatest pass rate, itself in the band.
    #[serde(default)]
    pub to: Option<Fraction>,
    /// Pass rates below this one, which itself is not in the band.
    #[serde(default)]
    pub below: Option<Fraction>,
}

impl Band {
    /// The lower end, and whether it is in the band.
    fn low(&self) -> (Fraction, bool) {
        match (self.from, self.above) {
            (Some(end), _) => (end, true),
            (None, Some(end)) => (end, false),
            (None, None) => (Fraction::ZERO, true),
        }
    }

    fn high(&self) -> (Fraction, bool) {
        match (self.to, self.below) {
            (Some(end), _) => (end, true),
            (None, Some(end)) => (end, false),
            (None, None) => (Fraction::ONE, true),
        }
    }

    fn holds(&self, correct: u32, samples: u32) -> bool {
        let compare = |end: Fraction| end.compare(u64::from(correct), u64::from(samples));
        let ((low, with_low), (high, with_high)) = (self.low(), self.high());
        let is_above = match compare(low) {
            Ordering::Greater => true,
            Ordering::Equal => with_low,
            Ordering::Less => false,
        };
        let is_below = match compare(high) {
            Ordering::Less => true,
            Ordering::Equal => with_high,
            Ordering::Greater => false,
        };
        is_above && is_below
    }

    /// Whether no rate at all is in it.
    fn is_empty(&self) -> bool {
        is_empty(self.low(), self.high())
    }

    fn overlaps(&self, other: &Self) -> bool {
        // The higher of the lower ends and the lower of the higher ones; where they are equal, the one that leaves out more.
        let lower = |(end, with): (Fraction, bool)| (end, !with);
        let low = [self, other]
            .map(Band::low)
            .into_iter()
            .max_by_key(|end| lower(*end));
        let high = [self, other].map(Band::high).into_iter().min();
        low.zip(high)
            .is_some_and(|(low, high)| !is_empty(low, high))
    }
}

fn is_empty(low: (Fraction, bool), high: (Fraction, bool)) -> bool {
    match low.0.cmp(&high.0) {
        Ordering::Less => false,
        Ordering::Equal => !(low.1 && high.1),
        Ordering::Greater => true,
    }
}

/// The ports that prompts are split into.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bands<'a> {
    /// All, some and none correct.
    Standard,
    /// The user's own.
    Named(&'a BTreeMap<String, Band>),
}

impl<'a> Bands<'a> {
    /// Their names, sorted where they are the user's, and `others` after these.
    pub(super) fn ports(self) -> Vec<&'a str> {
        match self {
            Self::Standard => STANDARD.to_vec(),
            Self::Named(bands) => bands
                .keys()
                .map(String::as_str)
                .chain(std::iter::once(OTHERS))
                .collect(),
        }
    }

    /// Place among the ports of a prompt with some samples.
    pub(super) fn place(self, correct: u32, samples: u32) -> usize {
        match self {
            Self::Standard if correct == samples => 0,
            Self::Standard if correct > 0 => 1,
            Self::Standard => 2,
            Self::Named(bands) => bands
                .values()
                .position(|band| band.holds(correct, samples))
                .unwrap_or(bands.len()),
        }
    }
}

/// What is wrong with some bands.
pub(super) fn faults(bands: &BTreeMap<String, Band>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if bands.is_empty() {
        faults.push(
            Fault::at("wrong-value", "bands", "`bands` names no band").with_help(
                "name bands such as `hard: { above: 0, to: 0.25 }`, or leave `bands` out",
            ),
        );
    }
    for (name, band) in bands {
        faults.extend(name_fault(name));
        faults.extend(end_faults(name, band));
    }
    let all: Vec<(&String, &Band)> = bands.iter().collect();
    for (place, (name, band)) in all.iter().enumerate() {
        for (before, other) in &all[..place] {
            if band.overlaps(other) {
                let message = format!("the bands `{before}` and `{name}` overlap");
                faults.push(at(name, message).with_help(
                    "a pass rate must be in one band at most: `from` and `to` are in a band, `above` and `below` are not",
                ));
            }
        }
    }
    faults
}

fn at(name: &str, message: String) -> Fault {
    let mut fault = Fault::at("wrong-value", "bands", message);
    fault.path.push(name.to_owned());
    fault
}

/// The name of a port, as others than bands have it too.
pub(crate) fn is_port_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|letter| {
            letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-_".contains(letter)
        })
}

fn name_fault(name: &str) -> Option<Fault> {
    if [OTHERS, UNDECIDED, PASS_RATES, MORE, QUARANTINE].contains(&name) {
        let message = format!("`{name}` is the name of another output");
        return Some(at(name, message).with_help("give the band another name"));
    }
    (!is_port_name(name)).then(|| {
        at(name, format!("`{name}` cannot be the name of an output")).with_help(
            "begin with a small letter and go on with small letters, digits, `-` and `_`",
        )
    })
}

fn end_faults(name: &str, band: &Band) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (first, second, is_double) in [
        ("from", "above", band.from.is_some() && band.above.is_some()),
        ("to", "below", band.to.is_some() && band.below.is_some()),
    ] {
        if is_double {
            let message = format!("the band `{name}` has both `{first}` and `{second}`");
            faults.push(at(name, message).with_help("write one of them"));
        }
    }
    let ends = [band.from, band.above, band.to, band.below];
    if let Some(end) = ends.into_iter().flatten().find(|end| *end > Fraction::ONE) {
        let message = format!("the band `{name}` ends at {end}, and a pass rate is at most 1");
        faults.push(at(name, message).with_help("write shares, such as 0.8 or \"4/5\" for 80 %"));
    } else if band.is_empty() {
        faults.push(
            at(name, format!("no pass rate is in the band `{name}`")).with_help(
                "its lower end (`from`, `above`) must be below its upper end (`to`, `below`), or `from` and `to` the same",
            ),
        );
    }
    faults
}
