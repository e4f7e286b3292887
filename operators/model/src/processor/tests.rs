//! Golden comparison with Jinja2, Hugging Face tokenizers and Pillow (`tests/golden/processor/make.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::policy::PatchedImage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::resize::{RgbPixels, resize_bicubic};
use super::{Chat, ChatTemplate, ImageProcessor, Processor};
use crate::prompt_rows::{ContentPart, Message};

#[derive(Deserialize)]
struct Golden {
    tokens: BTreeMap<String, String>,
    images: Vec<GoldenImage>,
    cases: Vec<Case>,
    completions: Vec<GoldenCompletion>,
}

#[derive(Deserialize)]
struct GoldenImage {
    grid: [usize; 3],
    tokens: usize,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<Value>,
    rendered: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct GoldenCompletion {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn processor() -> Processor {
    Processor::load(&folder().join("model")).unwrap()
}

fn image_file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap()
}

fn message(value: &Value) -> Message {
    let content = match &value["content"] {
        Value::String(text) => vec![ContentPart::Text(text.clone())],
        parts => parts
            .as_array()
            .unwrap()
            .iter()
            .map(|part| match part["type"].as_str() {
                Some("image") => ContentPart::Image("digest".into()),
                _ => ContentPart::Text(part["text"].as_str().unwrap().to_owned()),
            })
            .collect(),
    };
    Message {
        role: value["role"].as_str().unwrap().to_owned(),
        content,
    }
}

fn images(preprocessor: Value) -> Result<ImageProcessor, String> {
    ImageProcessor::from_json("preprocessor_config.json".as_ref(), preprocessor)
        .map_err(|error| error.to_string())
}

fn user(text: &str) -> Message {
    Message {
        role: "user".into(),
        content: vec![ContentPart::Text(text.to_owned())],
    }
}

#[test]
fn templates_render_as_in_jinja2() {
    let golden = golden();
    for case in &golden.cases {
        let template = ChatTemplate::new(case.template.clone(), golden.tokens.clone()).unwrap();
        let messages: Vec<Message> = case.messages.iter().map(message).collect();
        assert_eq!(
            template.render(&Chat::from_messages(&messages)).unwrap(),
            case.rendered,
            "{}",
            case.name
        );
    }
}

#[test]
fn token_ids_equal_those_of_the_python_tokenizer_with_placeholders_expanded() {
    let golden = golden();
    let mut processor = processor();
    for case in &golden.cases {
        processor.template =
            ChatTemplate::new(case.template.clone(), golden.tokens.clone()).unwrap();
        let messages: Vec<Message> = case.messages.iter().map(message).collect();
        let images = messages.iter().flat_map(|message| &message.content);
        let count = images
            .filter(|part| matches!(part, ContentPart::Image(_)))
            .count();
        let images = golden.images[..count].iter();
        let images = images
            .map(|image| {
                Arc::new(PatchedImage {
                    patches: Vec::new(),
                    grid_thw: image.grid,
                })
            })
            .collect();
        assert_eq!(
            processor.tokenize(&messages, images).unwrap().token_ids,
            case.ids,
            "{}",
            case.name
        );
    }
}

#[test]
fn completions_decode_without_special_tokens_but_with_tags() {
    let processor = processor();
    for completion in golden().completions {
        assert_eq!(
            processor.decode(&completion.ids).unwrap(),
            completion.decoded
        );
        assert_eq!(
            processor.encode_completion(&completion.text).unwrap(),
            completion.ids
        );
    }
}

#[test]
fn a_completion_that_spells_the_end_token_gets_no_second_one() {
    let processor = processor();
    assert_eq!(
        processor.encode_completion("7<|im_end|>").unwrap(),
        processor.encode_completion("7").unwrap()
    );
}

#[test]
fn stop_tokens_come_from_the_generation_configuration_and_the_end_token_from_the_tokenizer() {
    let processor = processor();
    assert_eq!(processor.stop_token_ids(), [2, 0]);
    assert_eq!(processor.end_token(), 2);
}

#[test]
fn resizing_equals_pillow_in_every_bit() {
    for index in 0..golden().images.len() {
        let source = image::load_from_memory(&image_file(&format!("image{index}.png")))
            .unwrap()
            .into_rgb8();
        let expected = image::load_from_memory(&image_file(&format!("resized{index}.png")))
            .unwrap()
            .into_rgb8();
        let pixels = RgbPixels {
            width: source.width() as usize,
            height: source.height() as usize,
            values: source.into_raw(),
        };
        let ours = resize_bicubic(
            pixels,
            expected.width() as usize,
            expected.height() as usize,
        );
        assert!(
            ours.values == expected.into_raw(),
            "image{index}.png differs"
        );
    }
}

#[test]
fn patches_equal_numpy() {
    let processor = processor();
    for (index, expected) in golden().images.iter().enumerate() {
        let image = processor
            .patches(&image_file(&format!("image{index}.png")))
            .unwrap();
        assert_eq!(image.grid_thw, expected.grid, "image{index}.png");
        assert_eq!(
            processor
                .images
                .as_ref()
                .unwrap()
                .placeholders(image.grid_thw),
            expected.tokens
        );
    }
    let image = processor.patches(&image_file("image0.png")).unwrap();
    let bytes = image_file("patches0.f32");
    let expected: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    assert!(image.patches == expected);
}

#[test]
fn sizes_follow_the_limits() {
    let json =
        json!({"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 1_003_520});
    let processor = images(json).unwrap();
    let size = |height, width| processor.target_size(height, width).unwrap();
    assert_eq!(size(64, 64), (56, 56));
    // Halves round to the even multiple.
    assert_eq!(size(70, 98), (56, 112));
    assert_eq!(size(10, 10), (56, 56));
    assert_eq!(size(3000, 4000), (840, 1148));
    assert!(
        processor
            .target_size(10, 2001)
            .unwrap_err()
            .contains("200 times")
    );
}

#[test]
fn text_that_spells_the_placeholder_is_an_error_not_a_wrong_image() {
    let processor = processor();
    let mut message = user("look: <|image_pad|>");
    message.content.push(ContentPart::Image("digest".into()));
    let image = Arc::new(PatchedImage {
        patches: Vec::new(),
        grid_thw: [1, 4, 4],
    });
    assert!(
        processor
            .tokenize(&[message], vec![image])
            .unwrap_err()
            .contains("2 image placeholders for 1 images")
    );
}

#[test]
fn unreadable_images_and_folders_are_named() {
    assert!(
        processor()
            .patches(b"\x89PNG\r\n\x1a\n but not really")
            .unwrap_err()
            .contains("not a readable image")
    );
    let error = Processor::load(&folder()).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.json") && error.contains("missing"),
        "{error}"
    );
}

/// A copy of the model folder whose files can be changed.
fn copied() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join("model")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn folders_that_newer_versions_of_transformers_write_are_read() {
    let copy = copied();
    let at = |name: &str| copy.path().join(name);
    let images = json_file(&at("preprocessor_config.json"));
    std::fs::remove_file(at("preprocessor_config.json")).unwrap();
    let all = json!({"image_processor": images, "processor_class": "Qwen2_5_VLProcessor"});
    std::fs::write(at("processor_config.json"), all.to_string()).unwrap();
    let mut tokenizer = json_file(&at("tokenizer_config.json"));
    let template = tokenizer.as_object_mut().unwrap().remove("chat_template");
    tokenizer["extra_special_tokens"] = json!({"image_token": "<|image_pad|>"});
    std::fs::write(at("tokenizer_config.json"), tokenizer.to_string()).unwrap();
    let template = template.unwrap().as_str().unwrap().to_owned() + "{{ image_token }}";
    std::fs::write(at("chat_template.jinja"), template).unwrap();

    let newer = Processor::load(copy.path()).unwrap();
    assert_eq!(newer.images, processor().images);
    let text = newer.render(&Chat::from_messages(&[user("Hi")])).unwrap();
    assert!(text.ends_with("assistant\n<|image_pad|>"), "{text}");
}

#[test]
fn conversations_with_tools_take_the_template_for_tools() {
    let copy = copied();
    let path = copy.path().join("tokenizer_config.json");
    let mut config = json_file(&path);
    config["chat_template"] = json!([
        {"name": "default", "template": "plain {{ eos_token }}"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"},
    ]);
    std::fs::write(&path, config.to_string()).unwrap();
    let processor = Processor::load(copy.path()).unwrap();
    let chat = Chat::new(Vec::new());
    assert_eq!(processor.render(&chat).unwrap(), "plain <|im_end|>");
    let chat = chat.with_tools(vec![json!({})]);
    assert_eq!(processor.render(&chat).unwrap(), "1 tools");
}

#[test]
fn a_broken_file_of_a_folder_is_named() {
    for (name, content, word) in [
        ("tokenizer.json", "{}", "tokenizer.json"),
        (
            "preprocessor_config.json",
            "{\"patch_size\": -1}",
            "preprocessor_config.json",
        ),
        ("generation_config.json", "[", "generation_config.json"),
        ("chat_template.jinja", "{% for %}", "chat_template.jinja"),
    ] {
        let copy = copied();
        std::fs::write(copy.path().join(name), content).unwrap();
        let error = Processor::load(copy.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}
