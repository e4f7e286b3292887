//! A wrong pipeline, as values: what, where, and what to do. Rendering is the binary's business.

/// A place in a text. A pipeline of several files is one text to it: [`crate::yaml::Document::locate`] tells the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Byte offset of the first byte.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
}

/// A second place that helps to understand a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// What is there: a lower-case fragment.
    pub message: String,
}

/// One thing wrong with a pipeline file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable name of the kind of problem, for example `unknown-key`.
    pub code: &'static str,
    /// What is wrong: a lower-case fragment that names the thing.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What is at that place: a short fragment.
    pub label: String,
    /// Other places.
    pub others: Vec<Label>,
    /// What to do, in the imperative.
    pub help: Option<String>,
}

impl Problem {
    /// A problem at one place.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>, span: Span) -> Self {
        Self {
            code,
            message: message.into(),
            span,
            label: String::new(),
            others: Vec::new(),
            help: None,
        }
    }

    /// Moves all places, for a text that stands behind others.
    pub(crate) fn shift(&mut self, base: usize) {
        self.span.start += base;
        for other in &mut self.others {
            other.span.start += base;
        }
    }

    /// Says what is at the place.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Points at another place as well.
    #[must_use]
    pub fn with_other(mut self, span: Span, message: impl Into<String>) -> Self {
        self.others.push(Label {
            span,
            message: message.into(),
        });
        self
    }
}

/// Drops problems after the first `before` that are of the same kind and at the same place as one of these: a text from which
/// several stages are made is wrong once.
pub fn drop_known(problems: &mut Vec<Problem>, before: usize) {
    let new = problems.split_off(before);
    for problem in new {
        let is_same = |known: &Problem| known.code == problem.code && known.span == problem.span;
        if !problems[..before].iter().any(is_same) {
            problems.push(problem);
        }
    }
}

/// The most choices that a message lists; of more it names the nearest only.
const MOST_LISTED: usize = 10;

/// The candidate that was probably meant.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let distance = |candidate: &str| {
        strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase())
    };
    // A third of the letters may differ, as they do in `temprature` or `max_tokens`.
    let most = (word.chars().count() / 3).max(1);
    let near = candidates
        .iter()
        .copied()
        .map(|candidate| (distance(candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= most);
    // Words that were left out or added: `max-tokens` for `max-new-tokens`.
    let parts = |word: &str| -> Vec<String> {
        word.split(['-', '_', '.']).map(str::to_lowercase).collect()
    };
    let contained = || {
        let wanted = parts(word);
        candidates.iter().copied().find(|candidate| {
            let have = parts(candidate);
            wanted.iter().all(|part| have.contains(part))
                || have.iter().all(|part| wanted.contains(part))
        })
    };
    near.map(|(_, candidate)| candidate).or_else(contained)
}

/// Help for an unknown word: the nearest candidate, and all of them when they are few. `noun` is their plural.
#[must_use]
pub fn hint(word: &str, candidates: &[&str], noun: &str) -> String {
    let list = match candidates.len() {
        0 => format!("there are no {noun} here"),
        1..=MOST_LISTED => format!("{noun} here: {}", listed(candidates)),
        _ => String::new(),
    };
    match nearest(word, candidates) {
        Some(near) if list.is_empty() => format!("did you mean `{near}`?"),
        Some(near) => format!("did you mean `{near}`? {list}"),
        None if list.is_empty() => format!("the {noun} are {}", listed(candidates)),
        None => list,
    }
}

/// Words in backticks with commas between.
#[must_use]
pub fn listed<S: AsRef<str>>(words: &[S]) -> String {
    words
        .iter()
        .map(|word| format!("`{}`", word.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}
