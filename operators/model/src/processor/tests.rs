//! Golden comparison with Jinja2, Hugging Face tokenizers and Pillow (`tests/golden/processor/make.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use engine_core::policy::PatchedImage;
use serde::Deserialize;
use serde_json::Value;

use super::resize::{RgbPixels, resize_bicubic};
use super::{ChatTemplate, ImageProcessor, Processor};
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
            template.render(&messages).unwrap(),
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
    let json = br#"{"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 1003520}"#;
    let processor = ImageProcessor::from_json("preprocessor_config.json".as_ref(), json).unwrap();
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
fn a_template_may_refuse_a_conversation() {
    let template = ChatTemplate::new(
        "{{ raise_exception('no user turn') }}".into(),
        BTreeMap::new(),
    )
    .unwrap();
    assert!(
        template
            .render(&[user("x")])
            .unwrap_err()
            .contains("no user turn")
    );
}

#[test]
fn dates_do_not_depend_on_the_day() {
    let template =
        ChatTemplate::new("{{ strftime_now('%d %b %Y') }}".into(), BTreeMap::new()).unwrap();
    assert_eq!(template.render(&[]).unwrap(), "26 Jul 2024");
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
            .patches(b"GIF89a but not really")
            .unwrap_err()
            .contains("not a readable image")
    );
    let error = Processor::load(&folder()).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer.json") && error.contains("missing"),
        "{error}"
    );
}
