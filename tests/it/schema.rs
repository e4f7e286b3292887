//! The JSON schema for editors is what the operators of this tree say.

use std::path::Path;

#[test]
fn the_json_schema_in_the_tree_is_current() {
    let expected = engine_plan::json_schema(&metis_flow::registry());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/pipeline.schema.json");
    let found: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).unwrap()).expect("the file is JSON");
    assert!(
        found == expected,
        "schemas/pipeline.schema.json is out of date: run `metis-flow dev schema > schemas/pipeline.schema.json`"
    );
}
