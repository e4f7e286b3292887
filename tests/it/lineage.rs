//! What an artifact was made from.

use crate::support::{Place, Project};

on_every_store!(
    a_tree_goes_down_to_the_files_outside_the_store,
    what_is_gone_is_said_and_what_never_was_is_an_error,
);

/// `again` has the rows of `few`: one artifact with two makers.
const PIPELINE: &str = "
version: 1
name: traced
seed: 1
stages:
  prompts:
    source: { path: data.parquet, columns: { id: id, solution: solution, category: kind } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 30' }
  again:
    inputs: { p: few }
    sql: { query: 'select * from p order by prompt_id' }
  kinds:
    inputs: { a: again, few: few }
    sql: { query: 'select a.category, count(*) as n from a join few on a.prompt_id = few.prompt_id group by a.category order by a.category' }
";

fn project(place: Place) -> Project {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/test.parquet");
    std::fs::copy(data, project.path("data.parquet")).unwrap();
    project
}

fn a_tree_goes_down_to_the_files_outside_the_store(place: Place) {
    let project = project(place);
    let digests = project.run("p.yaml").digests();
    let tree = project
        .call(&["lineage", "kinds", "--json"])
        .expect(0)
        .json();
    assert_eq!(tree["stages"][0], "kinds");
    let input = &tree["inputs"][0];
    assert_eq!(
        (&input["port"], &input["from"]["stages"][0]),
        (&"a".into(), &"again".into())
    );
    assert_eq!(input["digest"], digests["again.rows"]);
    let few = &input["from"]["inputs"][0]["from"];
    assert_eq!(few["stages"][0], "few");
    let prompts = &few["inputs"][0]["from"];
    assert_eq!(prompts["operator"], "source");
    assert_eq!(prompts["files"][0]["field"], "path");
    assert_eq!(prompts["files"][0]["path"], "data.parquet");
    assert_eq!(prompts["files"][0]["digest"].as_str().unwrap().len(), 64);
    let repeated = &tree["inputs"][1]["from"];
    assert_eq!(
        (&repeated["stages"][0], &repeated["repeated"]),
        (&"few".into(), &true.into())
    );

    let text = project.call(&["lineage", "kinds"]).expect(0).stdout;
    insta::allow_duplicates! { insta::with_settings!({ filters => vec![(r"\b[0-9a-f]{12}\b", "[digest]")] }, {
        insta::assert_snapshot!(text, @r"
        kinds (sql) [digest]
        |- a: [digest], `rows` of again (sql) [digest]
        |  `- p: [digest], `rows` of few (sql) [digest]
        |     `- p: [digest], `prompts` of prompts (source) [digest]
        |        `- path: data.parquet [digest]
        `- few: [digest], `rows` of few (sql) [digest] (see above)
        ");
    }) };
    let digest = &digests["kinds.rows"][..12];
    assert_eq!(project.call(&["lineage", digest]).expect(0).stdout, text);
}

fn what_is_gone_is_said_and_what_never_was_is_an_error(place: Place) {
    let project = project(place);
    project.run("p.yaml");
    let shown = project
        .call(&["show", "prompts", "--json"])
        .expect(0)
        .json();
    let key = shown["manifest"]["key"].as_str().unwrap();
    project.remove_object(&format!("v1/stages/{key}.json"));
    let text = project.call(&["lineage", "few"]).expect(0).stdout;
    assert!(text.contains("not in the store any more"), "{text}");
    let gone = project.call(&["lineage", "prompts"]).expect(2);
    assert!(
        gone.stderr.contains("no result in the store"),
        "{}",
        gone.stderr
    );
    let unknown = project.call(&["lineage", "fewer"]).expect(2);
    assert!(
        unknown.stderr.contains("`fewer`") && unknown.stderr.contains("kinds"),
        "{}",
        unknown.stderr
    );
}
