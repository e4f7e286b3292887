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
    stage.insert("quarantine".to_owned(), quarantine());
    let mut kinds = vec![json!({ "required": ["stages"] })];
    for entry in registry.entries() {
        let mut schema: Schema = (entry.json_schema)(&mut generator);
        schema.insert("description".to_owned(), json!(entry.about));
        stage.insert(entry.kind.to_owned(), schema.to_value());
        kinds.push(json!({ "required": [entry.kind] }));
    }
    let mut definitions = generator.take_definitions(true);
    definitions.values_mut().for_each(allow_references);
    stage.values_mut().for_each(allow_references);
    stage.extend(composition());
    // Definitions in the order of their names, so that the file does not change with registration order.
    definitions.sort_keys();

    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metis-flow pipeline",
        "type": "object",
        "additionalProperties": false,
        "required": ["version", "name", "seed"],
        "anyOf": [{ "required": ["stages"] }, { "required": ["include"] }],
        "properties": {
            "version": { "description": "Version of the format.", "const": 1 },
            "name": { "description": "Name of the pipeline in records and reports.", "type": "string", "minLength": 1 },
            "seed": seed("Seed of all stages that set none. The same seed gives the same results."),
            "include": {
                "description": "Files whose `params` and `stages` belong to this pipeline; paths start at the folder of this file.",
                "type": "array",
                "items": { "type": "string" },
            },
            "params": {
                "description": "Values that stages use as `${params.name}`, and that `--set params.name=value` changes.",
                "type": "object",
                "additionalProperties": param(),
            },
            "stages": {
                "description": "Stages by name. A stage has one operator; a group has `stages` of its own.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": { "pattern": "^([A-Za-z0-9_-]|\\$\\{[^}]+\\})+$" },
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
    let name = "([A-Za-z0-9_*-]|\\$\\{[^}]+\\})+";
    let source = json!({ "type": "string", "pattern": format!("^{name}(\\.{name})?$") });
    json!({
        "description": "What each input port reads: `stage` for the first output of a stage, `stage.port` for another, or a list of these. `name-*` stands for all stages of a loop.",
        "type": "object",
        "additionalProperties": { "anyOf": [source, { "type": "array", "items": source, "uniqueItems": true }] },
    })
}

fn quarantine() -> Value {
    let rows = json!({ "description": "At most this many rows.", "type": "integer", "minimum": 0 });
    let share = json!({ "description": "At most this share of the rows.", "type": "number", "minimum": 0, "maximum": 1 });
    json!({
        "description": "How many rows may fail; they go to the output `quarantine` with their errors. For operators that work row by row.",
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 1,
        "properties": { "rows": rows, "share": share },
    })
}

/// A value, or a declaration with a type.
fn param() -> Value {
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let list = json!({ "type": "array", "items": scalar });
    json!({ "anyOf": [scalar, list, {
        "type": "object",
        "additionalProperties": false,
        "required": ["type"],
        "properties": {
            "type": { "description": "What the value must be.", "enum": ["integer", "number", "text", "boolean", "list"] },
            "default": { "description": "The value when none is given. Without it one must be given.", "anyOf": [scalar, list] },
            "min": { "description": "The least value, also of each item of a list.", "type": "number" },
            "max": { "description": "The greatest value, also of each item of a list.", "type": "number" },
            "choices": { "description": "The values that it may have, also of each item of a list.", "type": "array", "minItems": 1, "items": scalar },
            "about": { "description": "What it is for.", "type": "string" },
        },
    }] })
}

/// The keys of loops and conditions.
fn composition() -> [(String, Value); 5] {
    let reference = json!({ "type": "string", "pattern": "\\$\\{" });
    let values = json!({ "type": "array", "minItems": 1, "items": { "type": ["string", "number", "boolean"] } });
    let source = json!({ "type": "string" });
    [
        ("when", json!({
            "description": "Whether the stage or group is there: `${params.name}`, `${params.name} == value` or `${params.name} != value`.",
            "anyOf": [{ "type": "boolean" }, reference],
        })),
        ("foreach", json!({
            "description": "A stage or group for each value of a list, or for each combination of several; the name contains `${variable}`.",
            "type": "object",
            "minProperties": 1,
            "additionalProperties": { "anyOf": [values, reference] },
        })),
        ("repeat", json!({
            "description": "How many rounds of `stages` follow each other; `${round}` is the number of the round. Stages without a seed get another one in each round.",
            "anyOf": [{ "type": "integer", "minimum": 1 }, reference],
        })),
        ("carry", json!({
            "description": "What rounds give to each other, read as `${carry.name}`; `group.name` is the last value.",
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": false,
                "required": ["first", "next"],
                "properties": { "first": source, "next": source },
            },
        })),
        ("stages", json!({
            "description": "The stages of a group.",
            "$ref": "#/properties/stages",
        })),
    ]
    .map(|(key, schema)| (key.to_owned(), schema))
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
                    json!([scalar, { "type": "string", "pattern": "\\$\\{" }]),
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
