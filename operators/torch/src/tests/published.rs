//! Configurations of published checkpoints ask for the weights that transformers builds for them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::golden::folder;
use super::persistence::Scratch;
use super::saved::digest;
use crate::config::ModelConfig;
use crate::layout::{self, canonical};

#[derive(Deserialize)]
struct Published {
    config: serde_json::Value,
    weights: i64,
    digest: String,
}

#[test]
fn published_configurations_have_the_weights_of_transformers() {
    let scratch = Scratch::new("published");
    let golden = std::fs::read(folder("published.json")).unwrap();
    let golden: BTreeMap<String, Published> = serde_json::from_slice(&golden).unwrap();
    for (name, published) in golden {
        let text = published.config.to_string();
        std::fs::write(scratch.0.join("config.json"), text).unwrap();
        let config = ModelConfig::read(&scratch.0).unwrap();
        let list = layout::parameters(&config);
        let parts = || list.iter().flat_map(|parameter| &parameter.parts);
        let weights: i64 = parts().map(layout::Part::numel).sum();
        assert_eq!(weights, published.weights, "{name}");
        let mut lines: Vec<String> = parts()
            .map(|part| format!("{} {:?}\n", canonical(&part.name), part.shape))
            .collect();
        lines.sort();
        assert_eq!(
            digest(lines.concat().as_bytes()),
            published.digest,
            "{name}"
        );
    }
}
