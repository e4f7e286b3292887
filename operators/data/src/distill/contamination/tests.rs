use arrow::datatypes::UInt32Type;
use serde_json::json;

use super::super::tests::{config, io_of};
use super::*;
use crate::messages::MessagesBuilder;
use crate::testing::{TestIo, prompts, text_values};

/// Prompts whose question is text with some images; each id with a solution.
fn asked(rows: &[(&str, &str, &[&str], Option<&str>)]) -> RecordBatch {
    let plain: Vec<_> = rows.iter().map(|row| (row.0, None, None)).collect();
    let batch = prompts(&plain);
    let mut messages = MessagesBuilder::default();
    for (_, question, images, _) in rows {
        messages.message("system");
        messages.text("think about the question before you give your final answer to it");
        messages.message("user");
        for image in *images {
            messages.image(image);
        }
        messages.text(question);
        messages.end_row();
    }
    let mut columns = batch.columns().to_vec();
    columns[1] = messages.finish();
    let solutions: ArrayRef = Arc::new(LargeStringArray::from_iter(rows.iter().map(|row| row.3)));
    columns[3] = solutions;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

const EXAM: &str = "a train leaves the station at noon and another one at two";

fn decontaminated(
    training: &RecordBatch,
    evaluation: &RecordBatch,
    answers: &[(&str, u32, &str)],
) -> TestIo {
    let mut io = io_of(answers);
    io.input("prompts", std::slice::from_ref(training));
    io.input("evaluation", std::slice::from_ref(evaluation));
    let config = config(json!({
        "keep": { "first": 5 }, "require-format": true, "decontaminate": { "words": 6 },
    }));
    io.run(&config, 0).unwrap();
    io
}

#[test]
fn a_planted_copy_is_found_and_named() {
    let question = format!(
        "In a town far away, {} o'clock: when do they meet?",
        EXAM.to_uppercase()
    );
    let training = asked(&[
        (
            "clean",
            "how many legs do seven ordinary spiders have together?",
            &[],
            None,
        ),
        ("copied", &question, &[], None),
        ("short", "2 + 2?", &[], None),
    ]);
    let evaluation = asked(&[
        (
            "e1",
            "an unrelated question about the weather on the moon",
            &[],
            None,
        ),
        (
            "e2",
            EXAM,
            &[],
            Some("both trains have met when the clock strikes four"),
        ),
        ("e3", "2+2", &[], None),
    ]);
    let answers = [
        ("clean", 0, "eight times seven is fifty six"),
        (
            "clean",
            1,
            "note that both trains have met when the clock strikes four, so 56",
        ),
        ("copied", 0, "four"),
        ("short", 0, "four"),
    ];
    let io = decontaminated(&training, &evaluation, &answers);
    assert_eq!(
        text_values(&io.output("examples"), "text"),
        ["eight times seven is fifty six"]
    );
    let found = io.output("contaminated");
    let column = |name: &str| text_values(&found, name);
    assert_eq!(column("prompt_id"), ["copied", "short", "clean"]);
    assert_eq!(column("found_in"), ["question", "question", "answer"]);
    assert_eq!(column("evaluation_id"), ["e2", "e3", "e2"]);
    assert_eq!(column("evaluation_source"), ["data", "data", "data"]);
    assert_eq!(
        column("ngram"),
        [
            "a train leaves the station at",
            "2 + 2",
            "both trains have met when the"
        ]
    );
    let samples = found
        .column_by_name("sample")
        .unwrap()
        .as_primitive::<UInt32Type>();
    assert!(samples.is_null(0) && samples.is_null(1));
    assert_eq!(samples.value(2), 1);
    assert_eq!(
        io.warnings(),
        [
            "2 prompts and 1 answers of other prompts have passages of 3 evaluation rows; `contaminated` lists them"
        ]
    );
}

#[test]
fn a_shared_instruction_and_another_image_are_no_copies() {
    let instruction = "please read the numbers in the picture and add them up";
    let ids: Vec<String> = (0..12).map(|number| format!("e{number}")).collect();
    let rows: Vec<(&str, &str, &[&str], Option<&str>)> = ids
        .iter()
        .map(|id| (id.as_str(), instruction, &["same"][..], None))
        .collect();
    let answers = [("t", 0, "seven"), ("u", 0, "eight")];
    let training = asked(&[
        ("t", instruction, &["one"], None),
        ("u", instruction, &["same"], None),
    ]);
    // Twelve rows have it: an instruction. One row has it: a copy, where the image is the same.
    let io = decontaminated(&training, &asked(&rows), &answers);
    assert_eq!(io.output("contaminated").num_rows(), 0);
    let io = decontaminated(&training, &asked(&rows[..1]), &answers);
    assert_eq!(text_values(&io.output("contaminated"), "prompt_id"), ["u"]);
    assert_eq!(text_values(&io.output("examples"), "prompt_id"), ["t"]);
}
