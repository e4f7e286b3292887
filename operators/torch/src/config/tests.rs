//! What is read and what is refused, on the configurations of the golden models.

use super::*;

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

/// The error of a model's configuration after a change of its text.
fn broken(name: &str, from: &str, to: &str) -> String {
    let text = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    assert!(text.contains(from), "{from} is not in {name}");
    ModelConfig::parse(&text.replace(from, to)).unwrap_err()
}

#[test]
fn both_layouts_of_qwen2_5_vl_are_read() {
    let released = ModelConfig::read(&folder("qwen2_5_vl/grouped_tied")).unwrap();
    assert!((released.text.rope.theta - 1000.0).abs() < 1e-9);
    assert_eq!(released.text.rope.axes, RopeAxes::Blocks([1, 1, 2]));
    assert!(released.tied && released.text.qkv_bias);
    let nested = ModelConfig::read(&folder("qwen2_5_vl/odd_untied")).unwrap();
    assert!((nested.text.rope.theta - 1_000_000.0).abs() < 1e-9);
    assert_eq!(nested.text.head_dim, 12);
    let tower = TowerConfig::Windowed {
        window: 2,
        full_blocks: vec![0],
    };
    assert_eq!(nested.vision.unwrap().tower, tower);
    assert!(!nested.tied);
}

#[test]
fn both_layouts_of_scaled_frequencies_are_read() {
    for (name, factor, original) in [
        ("scaled_released", 8.0, 32.0),
        ("scaled_untied", 4.0, 100.0),
    ] {
        let config = ModelConfig::read(&folder("llama").join(name)).unwrap();
        let scaling = config.text.rope.scaling.unwrap();
        assert!((scaling.factor - factor).abs() < 1e-9);
        assert!((scaling.original_positions - original).abs() < 1e-9);
    }
}

#[test]
fn what_cannot_be_built_is_named() {
    let error = broken(
        "qwen2_5_vl/grouped_tied",
        "\"model_type\": \"qwen2_5_vl\"",
        "\"model_type\": \"gemma\"",
    );
    assert!(
        error.contains("`gemma`") && error.contains("`llama`"),
        "{error}"
    );
    for (name, from, to, expected) in [
        ("qwen2_5_vl/grouped_tied", "\"mrope\"", "\"yarn\"", "`yarn`"),
        (
            "qwen2_5_vl/grouped_tied",
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 3",
            "num_key_value_heads 3",
        ),
        (
            "qwen2_5_vl/grouped_tied",
            "\"vocab_size\": 120,",
            "",
            "vocab_size",
        ),
        (
            "qwen3_vl/odd_untied",
            "\"mrope_interleaved\": true",
            "\"mrope_interleaved\": false",
            "mrope_interleaved",
        ),
        (
            "qwen3_vl/odd_untied",
            "\"gelu_pytorch_tanh\"",
            "\"relu\"",
            "vision_config.hidden_act is `relu`",
        ),
        (
            "qwen3_vl/odd_untied",
            "\"num_position_embeddings\": 25",
            "\"num_position_embeddings\": 26",
            "26 is not",
        ),
        ("qwen3/narrow_heads", "\"head_dim\": 10,", "", "head_dim"),
        (
            "qwen3/narrow_heads",
            "\"attention_bias\": false",
            "\"attention_bias\": true",
            "attention_bias",
        ),
        (
            "qwen3/narrow_heads",
            "\"full_attention\"",
            "\"sliding_attention\"",
            "sliding window",
        ),
        (
            "llama/smol",
            "\"hidden_act\": \"silu\"",
            "\"hidden_act\": \"gelu\"",
            "`gelu`",
        ),
        (
            "llama/smol",
            "\"mlp_bias\": false",
            "\"mlp_bias\": true",
            "mlp_bias",
        ),
        (
            "llama/smol",
            "\"model_type\"",
            "\"quantization_config\": {}, \"model_type\"",
            "quantization_config",
        ),
        ("llama/scaled_released", "\"factor\": 8.0,", "", "`factor`"),
        (
            "llama/scaled_untied",
            "\"llama3\"",
            "\"dynamic\"",
            "`dynamic`",
        ),
    ] {
        let error = broken(name, from, to);
        assert!(error.contains(expected), "{name}, {to}: {error}");
    }
}

#[test]
fn a_sliding_window_is_an_error_where_a_layer_uses_it() {
    let text = std::fs::read_to_string(folder("qwen2/grouped_tied").join("config.json")).unwrap();
    let text = text.replace(
        "\"use_sliding_window\": false",
        "\"use_sliding_window\": true",
    );
    assert!(ModelConfig::parse(&text).is_ok());
    let used = text.replace("\"max_window_layers\": 28", "\"max_window_layers\": 1");
    assert!(
        ModelConfig::parse(&used)
            .unwrap_err()
            .contains("sliding window")
    );
}
