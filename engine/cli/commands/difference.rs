//! The first field in which the keys of two results differ, with its values.

use engine_plan::first_difference;
use serde::Serialize;
use serde_json::Value;

use crate::text::brief;

/// Characters of a value in a line.
const VALUE_WIDTH: usize = 100;
/// Of these, those that are the same in both values and stand before the first that differs.
const BEFORE: usize = 30;

/// The first field in which two keys differ.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Difference {
    /// As a dotted path, for example `config.learning-rate`.
    pub(super) field: String,
    /// Its value in the first key.
    pub(super) before: Option<Value>,
    /// Its value in the second key.
    pub(super) now: Option<Value>,
}

impl Difference {
    /// Compares what two keys were made from; none when they are equal.
    pub(super) fn between(before: &Value, now: &Value) -> Option<Self> {
        first_difference(before, now).map(|field| Self {
            before: value_at(before, &field).cloned(),
            now: value_at(now, &field).cloned(),
            field,
        })
    }

    /// The input port that differs, when it is one.
    pub(super) fn port(&self) -> Option<&str> {
        let rest = self.field.strip_prefix("inputs.")?;
        Some(rest.split('.').next().unwrap_or(rest))
    }

    /// The field as the user wrote it.
    pub(super) fn subject(&self) -> String {
        if let Some(port) = self.port() {
            return format!("input `{port}`");
        }
        match self.field.strip_prefix("config.") {
            // What the key of a query covers in place of its text.
            Some("plan") => "the query".to_owned(),
            Some(key) => format!("`{key}`"),
            None if self.field == "version" => "the operator's version".to_owned(),
            None if self.field == "kind" => "the operator".to_owned(),
            None => format!("`{}`", self.field),
        }
    }
}

/// The value at a dotted path. A name with dots in it is one step.
fn value_at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if path.is_empty() {
        return Some(value);
    }
    match value {
        Value::Object(fields) => {
            fields
                .iter()
                .find_map(|(name, value)| match path.strip_prefix(name.as_str())? {
                    "" => Some(value),
                    rest => value_at(value, rest.strip_prefix('.')?),
                })
        }
        Value::Array(values) => {
            let (index, rest) = path.split_once('.').unwrap_or((path, ""));
            value_at(values.get(index.parse::<usize>().ok()?)?, rest)
        }
        _ => None,
    }
}

impl Difference {
    /// Both values on a line each. Of long values the part is shown where they begin to differ.
    pub(super) fn values(&self) -> [String; 2] {
        let [before, now] = [&self.before, &self.now].map(|value| match value {
            Some(Value::String(text)) => brief(text, usize::MAX),
            Some(value) => value.to_string(),
            None => "(not there)".to_owned(),
        });
        let common = before
            .char_indices()
            .zip(now.chars())
            .take_while(|((_, left), right)| left == right);
        let places: Vec<usize> = common.map(|((place, _), _)| place).collect();
        let cut = |text: &str| match places.len().checked_sub(BEFORE) {
            Some(start) if start > 0 && text.len() > VALUE_WIDTH => {
                format!("...{}", brief(&text[places[start]..], VALUE_WIDTH))
            }
            _ => brief(text, VALUE_WIDTH),
        };
        [cut(&before), cut(&now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_is_named_as_the_user_wrote_it() {
        let before = json!({"config": {"a.b": 1, "steps": 2}, "inputs": {"rows": ["x"]}});
        let changed = json!({"config": {"a.b": 3, "steps": 2}, "inputs": {"rows": ["x"]}});
        let difference = Difference::between(&before, &changed).unwrap();
        assert_eq!(
            (difference.subject(), difference.now),
            ("`a.b`".to_owned(), Some(json!(3)))
        );
        let fed = json!({"config": {"a.b": 1, "steps": 2}, "inputs": {"rows": ["y"]}});
        let difference = Difference::between(&before, &fed).unwrap();
        assert_eq!(difference.subject(), "input `rows`");
        assert!(Difference::between(&before, &before).is_none());
    }

    #[test]
    fn long_values_are_shown_where_they_differ() {
        let text = |end: &str| json!({ "config": { "plan": format!("{}{end}", "x".repeat(200)) } });
        let difference = Difference::between(&text("one"), &text("two")).unwrap();
        assert_eq!(difference.subject(), "the query");
        let [before, now] = difference.values();
        assert_eq!(before, format!("...{}one", "x".repeat(30)));
        assert!(now.ends_with("xtwo"), "{now}");
        let short = Difference::between(&json!({ "seed": 1 }), &json!({ "seed": 2 })).unwrap();
        assert_eq!(short.values(), ["1", "2"]);
    }
}
