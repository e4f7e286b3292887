use super::{Reading, read};
use crate::yaml::Document;

const HEAD: &str = "version: 1\nname: test\nseed: 7\n";

fn reading(text: &str) -> Reading {
    read(&Document::new("test.yaml", text))
}

fn messages(text: &str) -> Vec<String> {
    let place = |start: usize| text[..start].matches('\n').count() + 1;
    reading(text)
        .problems
        .iter()
        .map(|problem| {
            format!(
                "{}: {}: {}",
                place(problem.span.start),
                problem.code,
                problem.message
            )
        })
        .collect()
}

#[test]
fn a_pipeline_is_read_with_its_wiring() {
    let text = format!(
        "{HEAD}stages:\n  a: {{ source: {{}} }}\n  b: {{ inputs: {{ x: a, y: [a.rows, c] }}, seed: 9, mix: {{}} }}\n"
    );
    let reading = reading(&text);
    assert!(reading.problems.is_empty(), "{:?}", reading.problems);
    let pipeline = reading.pipeline;
    assert_eq!((pipeline.name.as_str(), pipeline.seed), ("test", 7));
    let stage = &pipeline.stages[1];
    assert_eq!(
        (
            stage.name.as_str(),
            stage.seed,
            stage.operators[0].text.as_str()
        ),
        ("b", Some(9), "mix")
    );
    assert_eq!(
        (
            stage.inputs[0].is_list,
            stage.inputs[0].sources[0].port.as_deref()
        ),
        (false, None)
    );
    assert_eq!(
        (
            stage.inputs[1].is_list,
            stage.inputs[1].sources[0].port.as_deref()
        ),
        (true, Some("rows"))
    );
}

#[test]
fn parameters_keep_their_type_and_the_lines_stay() {
    let text = format!(
        "{HEAD}params: {{ count: 16, folder: data/x, rate: 1.0e-5 }}\nstages:\n  a:\n    source: {{ samples: \"${{params.count}}\", path: \"${{params.folder}}/y-${{params.count}}\", rate: \"${{ params.rate }}\", text: \"$${{raw}}\", bad: x }}\n"
    );
    let reading = reading(&text);
    assert!(reading.problems.is_empty(), "{:?}", reading.problems);
    let at = |key: &'static str| ["stages", "a", "source", key];
    assert_eq!(reading.document.parse_at::<u32>(&at("samples")), Ok(16));
    assert_eq!(reading.document.parse_at::<f64>(&at("rate")), Ok(1.0e-5));
    assert_eq!(
        reading.document.parse_at::<String>(&at("path")).as_deref(),
        Ok("data/x/y-16")
    );
    assert_eq!(
        reading.document.parse_at::<String>(&at("text")).as_deref(),
        Ok("${raw}")
    );
    let problems = reading
        .document
        .parse_at::<u32>(&at("bad"))
        .expect_err("`x` is no number");
    assert_eq!(
        problems[0].span.start,
        text.find("bad: x").expect("it is there") + 5
    );
}

#[test]
fn unknown_and_unused_parameters_are_problems() {
    let text = format!(
        "{HEAD}params:\n  base: a\n  unused: b\nstages:\n  a: {{ source: {{ path: \"${{params.bsae}}\", home: \"${{env.HOME}}\" }} }}\n"
    );
    let expected = [
        "8: unknown-parameter: there is no parameter `bsae`",
        "8: unknown-parameter: `${env.HOME}` is no reference to a parameter",
        "5: unused-parameter: no stage uses the parameter `base`",
        "6: unused-parameter: no stage uses the parameter `unused`",
    ];
    assert_eq!(messages(&text), expected);
}

#[test]
fn the_head_is_checked() {
    let text = "version: 2\nnmae: x\nstages: []\n";
    let expected = [
        "2: unknown-key: a pipeline file has no key `nmae`",
        "1: missing-key: the pipeline file lacks the key `seed`",
        "1: wrong-value: `version` must be 1, not `2`",
        "3: wrong-type: `stages` must be a mapping of stage names to stages, not a list",
    ];
    assert_eq!(messages(text), expected);
}

#[test]
fn stages_and_inputs_of_the_wrong_shape_are_all_reported() {
    let text = format!(
        "{HEAD}stages:\n  a: 5\n  b.c: {{ mix: {{}} }}\n  d: {{ inputs: [a], mix: {{}} }}\n  e: {{ inputs: {{ x: {{}}, y: [a, [b], a] }}, mix: {{}} }}\n  a: {{ mix: {{}} }}\n"
    );
    let expected = [
        "9: duplicate-key: the key `a` is given twice",
        "5: wrong-type: `a` must be a mapping with an operator, not `5`",
        "6: wrong-value: `b.c` is no name for a stage",
        "7: wrong-type: `inputs` must be a mapping of ports to stages, not a list",
        "8: wrong-type: `x` must be `stage`, `stage.port` or a list of these, not a mapping",
        "8: wrong-type: `y` must name `stage` or `stage.port`, not a list",
        "8: duplicate-input: the port `y` gets `a` twice",
    ];
    assert_eq!(messages(&text), expected);
}
