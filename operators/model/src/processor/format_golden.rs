//! Images of all kinds against transformers (`tests/golden/processor/formats.py`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::ImageProcessor;
use super::resize::RgbPixels;

#[derive(Deserialize)]
struct Golden {
    configs: BTreeMap<String, Value>,
    images: BTreeMap<String, BTreeMap<String, Expected>>,
}

#[derive(Deserialize)]
struct Expected {
    grid: [usize; 3],
    tokens: usize,
    /// Places in the patches and their values.
    samples: Vec<(usize, f32)>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join("formats").join(name)).unwrap()
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("formats.json")).unwrap()).unwrap()
}

fn processor(config: &Value) -> Result<ImageProcessor, String> {
    ImageProcessor::from_json("preprocessor_config.json".as_ref(), config.clone())
        .map_err(|error| error.to_string())
}

/// Pixels as they were before normalisation, from 0 to 255.
fn levels(patches: &[f32], config: &Value) -> Vec<f32> {
    let side = config["patch_size"].as_u64().unwrap() * config["patch_size"].as_u64().unwrap();
    let plane = usize::try_from(side).unwrap() * 2;
    let number = |key: &str, channel: usize| config[key][channel].as_f64().unwrap() as f32;
    let level = |(index, value): (usize, &f32)| {
        let channel = index / plane % 3;
        (value * number("image_std", channel) + number("image_mean", channel)) * 255.0
    };
    patches.iter().enumerate().map(level).collect()
}

#[test]
fn images_of_all_kinds_are_those_of_transformers() {
    let golden = golden();
    assert!(golden.images.len() > 30);
    let mut far = Vec::new();
    for (name, expected) in &golden.images {
        for (key, expected) in expected {
            let config = &golden.configs[key];
            let processor = processor(config).unwrap();
            let ours = processor
                .process(&file(name))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(ours.grid_thw, expected.grid, "{name}");
            assert_eq!(
                processor.placeholders(ours.grid_thw),
                expected.tokens,
                "{name}"
            );
            let theirs = image::load_from_memory(&file(&format!("{name}.{key}.png")))
                .unwrap()
                .into_rgb8();
            let theirs = processor.cut(&RgbPixels {
                width: theirs.width() as usize,
                height: theirs.height() as usize,
                values: theirs.into_raw(),
            });
            for (place, value) in &expected.samples {
                assert!(
                    (theirs.patches[*place] - value).abs() < 1e-5,
                    "{name}, value {place}"
                );
            }
            let (ours, theirs) = (
                levels(&ours.patches, config),
                levels(&theirs.patches, config),
            );
            let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
            let most = apart.fold(0.0_f32, f32::max).round();
            // Only inks are turned into colours by another formula.
            if most > f32::from(u8::from(name == "cmyk.jpg")) {
                far.push(format!("{name}.{key}: {most}"));
            }
        }
    }
    assert!(far.is_empty(), "{far:?}");
}

#[test]
fn bad_images_are_refused_with_a_reason() {
    let processor = processor(&json!({})).unwrap();
    let whole = |name: &str| file(name);
    let cut = |name: &str| {
        let bytes = file(name);
        bytes[..bytes.len() * 2 / 3].to_vec()
    };
    let mut no_pixels = whole("plain.png");
    no_pixels[16..20].copy_from_slice(&[0; 4]);
    for (bytes, reason) in [
        (Vec::new(), "not a readable image"),
        (b"<svg/>".to_vec(), "not a readable image"),
        (cut("plain.png"), "not a readable image"),
        (cut("full.jpg"), "cut short"),
        (cut("progressive.jpg"), "cut short"),
        (cut("lossless.webp"), "not a readable image"),
        (cut("lossy.webp"), "not a readable image"),
        (cut("plain.bmp"), "not a readable image"),
        (cut("moving.gif")[..600].to_vec(), "not a readable image"),
        (no_pixels, "not a readable image"),
        (bomb(), "60000 x 60000 pixels: more than"),
        (thin(), "one side is more than 200 times the other"),
    ] {
        let error = processor.process(&bytes).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn damaged_jpeg_files_break_nothing() {
    let mut state = 3_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for name in ["halved.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg"] {
        let whole = file(name);
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..=random(4) {
                let place = random(bytes.len());
                bytes[place] = random(256) as u8;
            }
            // An image or none: nothing else can be said of it.
            drop(super::jpeg::decode(&bytes, 70, 51));
        }
    }
}

/// A PNG file that says it is large; nothing is unpacked to find out.
fn bomb() -> Vec<u8> {
    let mut bytes = file("plain.png");
    bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let sum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 * (sum & 1))
        })
    })
}

fn thin() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(201, 1)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

#[test]
fn both_layouts_of_the_configuration_are_read() {
    let size = |config: Value, height, width| {
        processor(&config)
            .unwrap()
            .target_size(height, width)
            .unwrap()
    };
    // What the classes of transformers take where a file says nothing.
    assert_eq!(size(json!({}), 1, 1), (56, 56));
    assert_eq!(size(json!({}), 2000, 2000), (980, 980));
    let old = json!({"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2});
    assert_eq!(size(old, 2000, 2000), (1988, 1988));
    let nested = json!({"size": {"min_pixels": 3136, "max_pixels": 784 * 16}});
    assert_eq!(size(nested, 2000, 2000), (112, 112));
    let new =
        json!({"size": {"longest_edge": 16_777_216, "shortest_edge": 65536}, "patch_size": 16});
    assert_eq!(size(new.clone(), 10, 10), (256, 256));
    assert_eq!(size(new, 3000, 3000), (3008, 3008));
    // The older names win, as they do there.
    let both = json!({"max_pixels": 3136, "size": {"longest_edge": 99999, "shortest_edge": 784}});
    assert_eq!(size(both, 500, 500), (56, 56));
}

#[test]
fn configurations_that_cannot_be_followed_are_refused() {
    for (config, reason) in [
        (json!({"do_resize": false}), "do_resize"),
        (json!({"resample": 2}), "`resample` is 2"),
        (json!({"patch_size": 0}), "at least 1"),
        (json!({"min_pixels": 10, "max_pixels": 9}), "no image fits"),
        (json!({"image_mean": [0.5]}), "preprocessor_config.json"),
    ] {
        let error = processor(&config).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}
