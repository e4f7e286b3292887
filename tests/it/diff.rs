//! What differs between two runs, down to rows.

use serde_json::{Value, json};

use crate::support::{Place, Project};
use crate::tables::{sums, write};

on_every_store!(
    flipped_answers_and_the_change_of_the_pass_rate,
    the_first_stage_that_differs_is_named_with_both_values,
    rows_are_matched_by_their_keys,
    models_differ_by_tensor,
);

/// Eight sums of which so many are right; and what follows from them.
const PIPELINE: &str = "
version: 1
name: compared
seed: 1
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id, category: kind } } }
  checked:
    inputs: { p: prompts }
    sql:
      query: >
        select prompt_id, cast(0 as bigint) as sample,
        case when prompt_id < 'sum-00000RIGHT' then 'correct' else 'wrong' end as verdict,
        answer as extracted, 'the answer is ' || answer as text from p
  kinds:
    inputs: { c: checked }
    sql: { query: 'select verdict as id, count(*) as answers from c group by verdict order by verdict' }
";

fn with_right(right: u32) -> String {
    PIPELINE.replace("RIGHT", &right.to_string())
}

/// A project in which four sums were right, and then six.
fn project(place: Place) -> Project {
    let project = Project::at(place);
    write(&project.path("sums.parquet"), &sums(0..8));
    for right in [4, 6] {
        project.write("p.yaml", &with_right(right));
        project.run("p.yaml");
    }
    project
}

fn flipped_answers_and_the_change_of_the_pass_rate(place: Place) {
    let project = project(place);
    let diff = project
        .call(&["diff", "checked@latest~1", "checked@latest", "--json"])
        .expect(0)
        .json();
    let answers = &diff["results"][0]["answers"];
    let counts = [
        "both",
        "only_a",
        "only_b",
        "right_to_wrong",
        "wrong_to_right",
        "masked",
    ];
    assert_eq!(
        counts.map(|name| answers[name].as_u64().unwrap()),
        [8, 0, 0, 0, 2, 0]
    );
    let rate = &answers["pass_rate"];
    assert_eq!(
        (&rate["prompts"], &rate["a"], &rate["b"], &rate["change"]),
        (&json!(8), &json!(0.5), &json!(0.75), &json!(0.25))
    );
    // Two differences of 1 and six of 0: deviation 0.4629, half an interval 1.96 * 0.4629 / sqrt(8).
    let close = |name: &str, value: f64| (rate[name].as_f64().unwrap() - value).abs() < 1e-4;
    assert!(close("low", -0.0708) && close("high", 0.5708), "{rate}");
    let flipped: Vec<&Value> = answers["rows"].as_array().unwrap().iter().collect();
    assert_eq!(flipped.len(), 2);
    assert_eq!(
        (
            &flipped[0]["prompt_id"],
            &flipped[0]["a"]["verdict"],
            &flipped[0]["b"]["verdict"]
        ),
        (&json!("sum-000004"), &json!("wrong"), &json!("correct"))
    );
    assert_eq!(flipped[0]["b"]["text"], "the answer is 5");

    let text = project
        .call(&["diff", "latest~1", "latest"])
        .expect(0)
        .stdout;
    for words in [
        "first difference: stage `checked`",
        "wrong to right 2",
        "pass rate 50.0 % -> 75.0 %: +25.0 points (95 % interval -7.1 to +57.1), paired over 8 prompts",
        "sum-000005, sample 0",
    ] {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
}

fn the_first_stage_that_differs_is_named_with_both_values(place: Place) {
    let project = project(place);
    let diff = project
        .call(&["diff", "latest~1", "latest", "--json", "--rows", "0"])
        .expect(0)
        .json();
    let runs = &diff["runs"];
    assert_eq!(
        (&runs["first"], &runs["equal"]),
        (&json!("checked"), &json!(1))
    );
    let stages = runs["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 2);
    assert_eq!(stages[0]["what"], "key");
    assert_ne!(stages[0]["differs"]["before"], stages[0]["differs"]["now"]);
    assert_eq!(stages[1]["from"], json!(["checked"]));

    let same = project.call(&["diff", "latest", "latest"]).expect(0).stdout;
    assert!(
        same.contains("no difference: all 3 stages are equal"),
        "{same}"
    );
    let nobody = project.call(&["diff", "latest", "latest~9"]).expect(2);
    assert!(
        nobody.stderr.contains("this store has 2 runs"),
        "{}",
        nobody.stderr
    );
}

fn rows_are_matched_by_their_keys(place: Place) {
    let project = project(place);
    let tables = |rows: &str| {
        let arguments = ["diff", "kinds@latest~1", "latest", "--json", "--rows", rows];
        let diff = project.call(&arguments).expect(0).json();
        diff["results"][0]["tables"][0].clone()
    };
    let table = tables("5");
    assert_eq!(
        (
            &table["key"],
            &table["changed"],
            &table["only_a"],
            &table["only_b"]
        ),
        (&json!(["id"]), &json!(2), &json!(0), &json!(0))
    );
    assert_eq!(
        table["examples"][0],
        json!({ "what": "changed", "key": { "id": "correct" }, "values": { "answers": { "a": 4, "b": 6 } } })
    );
    assert_eq!(tables("1")["examples"].as_array().unwrap().len(), 1);

    project.write("p.yaml", &with_right(9));
    project.run("p.yaml");
    let table = tables("5");
    assert_eq!(
        (&table["changed"], &table["only_a"], &table["only_b"]),
        (&json!(1), &json!(1), &json!(0)),
        "no sum is wrong any more: {table}"
    );
}

fn models_differ_by_tensor(place: Place) {
    let project = Project::at(place);
    project.write(
        "p.yaml",
        "
version: 1
name: models
seed: 1
stages:
  one: { seed: 1, init-model: { config: $repo/examples/models/tiny-vl-config } }
  two: { seed: 2, init-model: { config: $repo/examples/models/tiny-vl-config } }
",
    );
    project.run("p.yaml");
    let diff = project
        .call(&["diff", "one", "two", "--json"])
        .expect(0)
        .json();
    let model = &diff["results"][0]["models"][0];
    assert_eq!(
        model["files"],
        json!([{ "name": "model.safetensors", "what": "changed" }])
    );
    let largest = model["largest"].as_array().unwrap();
    assert!(
        model["tensors"].as_u64() > Some(10) && largest.len() == 10,
        "{model}"
    );
    assert!(largest[0]["largest"].as_f64() >= largest[9]["largest"].as_f64());
    assert!(largest[9]["largest"].as_f64() > Some(0.0));
}
