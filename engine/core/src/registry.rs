//! The table of operator kinds. Both binaries build the same one; only the worker has a model backend.

use std::collections::BTreeMap;

use schemas::Problem;
use schemas::yaml::Document;

use crate::operator::{Family, OperatorConfig, OperatorKind, Placement};

/// A configuration, typed and as canonical JSON (defaults filled in, keys sorted): the JSON enters the stage key.
#[derive(Debug)]
pub struct ParsedConfig {
    /// The typed configuration.
    pub config: Box<dyn OperatorConfig>,
    /// The same as JSON with sorted keys.
    pub canonical: serde_json::Value,
}

/// What is known of one kind.
#[derive(Clone, Copy, Debug)]
pub struct OperatorEntry {
    /// The name in YAML.
    pub kind: &'static str,
    /// Version of its output.
    pub version: u32,
    /// How it works on its rows.
    pub family: Family,
    /// Where it runs, unless a configuration says otherwise.
    pub placement: Placement,
    /// Whether the seed can change its output.
    pub uses_seed: bool,
    /// One line for the operator table.
    pub about: &'static str,
    /// Reads a configuration from its place in a pipeline file, so that errors point there.
    pub parse: fn(&Document, &[&str]) -> Result<ParsedConfig, Vec<Problem>>,
    /// Reads a configuration from its canonical JSON, as a worker gets it.
    pub from_json: fn(serde_json::Value) -> Result<Box<dyn OperatorConfig>, serde_json::Error>,
    /// JSON schema of the configuration.
    pub json_schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
}

/// All kinds, by name.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: BTreeMap<&'static str, OperatorEntry>,
}

impl Registry {
    /// Adds a kind.
    pub fn register<K: OperatorKind>(&mut self) {
        let entry = OperatorEntry {
            kind: K::KIND,
            version: K::VERSION,
            family: K::FAMILY,
            placement: K::PLACEMENT,
            uses_seed: K::USES_SEED,
            about: K::ABOUT,
            parse: parse::<K>,
            from_json: |json| Ok(Box::new(serde_json::from_value::<K>(json)?)),
            json_schema: |generator| generator.subschema_for::<K>(),
        };
        let previous = self.entries.insert(K::KIND, entry);
        assert!(
            previous.is_none(),
            "operator kind `{}` is registered twice",
            K::KIND
        );
    }

    /// The entry of a kind.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<&OperatorEntry> {
        self.entries.get(kind)
    }

    /// All entries, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = &OperatorEntry> {
        self.entries.values()
    }
}

fn parse<K: OperatorKind>(
    document: &Document,
    path: &[&str],
) -> Result<ParsedConfig, Vec<Problem>> {
    let config: K = document.parse_at(path)?;
    let canonical = canonical(&config);
    Ok(ParsedConfig {
        config: Box::new(config),
        canonical,
    })
}

/// JSON with sorted keys at every level.
///
/// # Panics
/// When the value does not serialise to JSON: a mistake in an operator's source.
pub fn canonical(value: &impl serde::Serialize) -> serde_json::Value {
    let json = serde_json::to_value(value).expect("operator configurations serialise to JSON");
    sorted(json)
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let ordered: BTreeMap<String, serde_json::Value> = map
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            serde_json::Value::Object(ordered.into_iter().collect())
        }
        serde_json::Value::Array(items) => {
            serde_json::Value::Array(items.into_iter().map(sorted).collect())
        }
        other => other,
    }
}
