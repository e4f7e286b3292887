//! The pipeline file as a JSON schema, for completion and checks in editors.

use engine_core::Registry;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// The JSON schema of a pipeline file with these operators: strict, one property per kind.
#[must_use]
pub fn json_schema(registry: &Registry) -> Value {
    let mut generator = SchemaGenerator::default();
    let mut stage: Map<String, Value> = Map::new();
    stage.insert("inputs".to_owned(), inputs());
    stage.insert(
        "seed".to_owned(),
        seed("Seed of this stage alone. The pipeline's seed holds where it is absent."),
    );
    let mut kinds = Vec::new();
    for entry in registry.entries() {
        let mut schema: Schema = (entry.json_schema)(&mut generator);
        schema.insert("description".to_owned(), json!(entry.about));
        stage.insert(entry.kind.to_owned(), schema.to_value());
        kinds.push(json!({ "required": [entry.kind] }));
    }
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(allow_references);
    stage.values_mut().for_each(allow_references);
    // Definitions in the order of their names, so that the file does not change with registration order.
    definitions.sort_keys();

    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metis-flow pipeline",
        "type": "object",
        "additionalProperties": false,
        "required": ["version", "name", "seed", "stages"],
        "properties": {
            "version": { "description": "Version of the format.", "const": 1 },
            "name": { "description": "Name of the pipeline in records and reports.", "type": "string", "minLength": 1 },
            "seed": seed("Seed of all stages that set none. The same seed gives the same results."),
            "params": {
                "description": "Values that stages use as `${params.name}`.",
                "type": "object",
                "additionalProperties": { "type": ["string", "number", "boolean"] },
            },
            "stages": {
                "description": "Stages by name. A stage has one operator.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": { "pattern": "^[A-Za-z0-9_-]+$" },
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": stage,
                    "oneOf": kinds,
                },
            },
        },
        "$defs": definitions,
    })
}

fn seed(description: &str) -> Value {
    json!({ "description": description, "type": "integer", "minimum": 0 })
}

fn inputs() -> Value {
    let source = json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)?$" });
    json!({
        "description": "What each input port reads: `stage` for the first output of a stage, `stage.port` for another, or a list of these.",
        "type": "object",
        "additionalProperties": { "anyOf": [source, { "type": "array", "items": source, "uniqueItems": true }] },
    })
}

/// Lets a reference to a parameter stand wherever a number, a boolean or a fixed word is asked for.
fn allow_references(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(allow_references),
        Value::Object(map) => {
            // What is inside `enum`, `default` and the like are values, not schemas.
            for (_, inner) in map.iter_mut().filter(|(key, _)| {
                !matches!(
                    key.as_str(),
                    "enum" | "const" | "default" | "examples" | "required"
                )
            }) {
                allow_references(inner);
            }
            if is_typed_scalar(map) {
                let mut scalar = std::mem::take(map);
                let description = scalar.remove("description");
                if let Some(description) = description {
                    map.insert("description".to_owned(), description);
                }
                map.insert(
                    "anyOf".to_owned(),
                    json!([scalar, { "type": "string", "pattern": "^\\$\\{params\\." }]),
                );
            }
        }
        _ => {}
    }
}

fn is_typed_scalar(schema: &Map<String, Value>) -> bool {
    let is_scalar = |name: &Value| matches!(name.as_str(), Some("integer" | "number" | "boolean"));
    match schema.get("type") {
        Some(Value::Array(types)) => types.iter().any(is_scalar),
        Some(name) => is_scalar(name) || (name == "string" && schema.contains_key("enum")),
        None => false,
    }
}
