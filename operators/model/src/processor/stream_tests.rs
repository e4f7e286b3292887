//! Streams against decoding all tokens at once.

use std::path::PathBuf;

use super::super::Processor;
use super::*;

fn processor() -> Processor {
    let folder =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor/model");
    Processor::load(&folder).unwrap()
}

/// The pieces of a stream, the last of them from its end.
fn pieces(processor: &Processor, tokens: &[u32]) -> Vec<String> {
    let mut stream = TextStream::new(processor);
    let mut pieces: Vec<String> = tokens
        .iter()
        .map(|token| stream.push(*token).unwrap())
        .collect();
    pieces.push(stream.finish());
    pieces
}

#[test]
fn characters_of_several_tokens_come_whole() {
    let processor = processor();
    let text = "caf\u{e9} \u{4e2d}\u{6587} \u{1f600}\u{1f469}\u{200d}\u{1f469} \u{fffd} x\u{fffd}";
    let tokens = processor.encode_completion(text).unwrap();
    assert!(tokens.len() > text.chars().count(), "{tokens:?}");
    let pieces = pieces(&processor, &tokens);
    assert_eq!(pieces.concat(), text);
    // Nothing is held back longer than it must be: each whole character came with its last token.
    let face = pieces.iter().position(|piece| piece.contains('\u{1f600}'));
    let face = face.unwrap();
    let before = processor.decode(&tokens[..face]).unwrap();
    assert!(before.ends_with(REPLACEMENT), "{before}");
}

#[test]
fn any_tokens_joined_are_what_they_decode_to() {
    let processor = processor();
    let mut state = 7_u64;
    for length in 0..200 {
        let tokens: Vec<u32> = (0..length)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // Beyond the vocabulary too: models sample such ids.
                u32::try_from((state >> 33) % 520).unwrap()
            })
            .collect();
        assert_eq!(
            pieces(&processor, &tokens).concat(),
            processor.decode(&tokens).unwrap(),
            "{tokens:?}"
        );
    }
}

#[test]
fn bytes_that_never_become_text_do_not_pile_up() {
    let processor = processor();
    // A byte that only continues a character.
    let byte = processor.tokenizer.token_to_id("\u{a2}").unwrap();
    assert_eq!(processor.decode(&[byte]).unwrap(), "\u{fffd}");
    let mut stream = TextStream::new(&processor);
    let mut text = String::new();
    for _ in 0..1000 {
        text += &stream.push(byte).unwrap();
        assert!(stream.window.len() <= WINDOW_TOKENS);
    }
    text += &stream.finish();
    assert_eq!(text, "\u{fffd}".repeat(1000));
}

#[test]
fn special_tokens_have_no_text() {
    let processor = processor();
    let mut tokens = processor.encode_completion("7 + 5").unwrap();
    tokens.push(9999);
    assert_eq!(pieces(&processor, &tokens).concat(), "7 + 5");
}

fn stops(strings: &[&str]) -> StopStrings {
    StopStrings::new(strings.iter().map(|stop| (*stop).to_owned()).collect())
}

#[test]
fn the_stop_string_that_is_complete_first_counts() {
    assert_eq!(
        stops(&["</answer>", "\n\n"]).find("a\n\nb</answer>"),
        Some(1)
    );
    assert_eq!(stops(&["abcd", "c"]).find("abcd"), Some(2));
    assert_eq!(stops(&["c", "bc"]).find_range("abcd"), Some(1..3));
    assert_eq!(stops(&["x", ""]).find("abc"), None);
    assert!(stops(&[""]).is_empty());
}

#[test]
fn what_may_become_a_stop_string_is_held_back() {
    let stops = stops(&["<end>", "\u{e9}\u{e9}"]);
    assert_eq!(stops.releasable("text <en"), 5);
    assert_eq!(stops.releasable("text <en "), 9);
    assert_eq!(stops.releasable("<<"), 1);
    assert_eq!(stops.releasable("caf\u{e9}"), 3);
    assert_eq!(stops.releasable(""), 0);
}

#[test]
fn the_cut_does_not_depend_on_how_text_comes() {
    let text = "one <e <en <end> two";
    for size in 1..text.len() {
        let mut filter = StopFilter::new(stops(&["<end>", "nothing"]));
        let mut passed = String::new();
        for piece in text.as_bytes().chunks(size) {
            passed += &filter.push(std::str::from_utf8(piece).unwrap());
        }
        assert!(filter.is_stopped());
        assert_eq!(passed + &filter.finish(), "one <e <en ");
    }
    let mut filter = StopFilter::new(stops(&["<end>"]));
    assert_eq!(filter.push("one <e"), "one ");
    assert_eq!(filter.finish(), "<e");
}
