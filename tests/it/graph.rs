//! The drawing of a pipeline.

use crate::support::Project;

/// Data files need not be there: a drawing needs the pipeline alone.
const PIPELINE: &str = "
version: 1
name: drawn
seed: 1
stages:
  kinds:
    inputs: { p: end, other: prompts }
    sql: { query: 'select p.category, count(*) as n from p join other using (prompt_id) group by p.category' }
  end:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 6' }
  prompts:
    source: { path: nowhere.parquet, columns: { id: id, solution: solution, category: kind } }
  base: { init-model: { config: nowhere } }
  answers:
    inputs: { prompts: prompts, model: base }
    rollout: { samples: 2, temperature: 1.0, max-new-tokens: 8 }
";

fn drawn(format: &str) -> String {
    let project = Project::new();
    project.write("p.yaml", PIPELINE);
    let call = || {
        project
            .call(&["graph", "p.yaml", "--format", format])
            .expect(0)
            .stdout
    };
    let text = call();
    assert_eq!(call(), text);
    text
}

#[test]
fn mermaid_has_every_stage_and_the_ports_of_every_edge() {
    insta::assert_snapshot!(drawn("mermaid"), @r##"
    flowchart TD
      n0["prompts<br/>source"]
      n1["end<br/>sql"]
      n2["kinds<br/>sql"]
      n3["base<br/>init-model"]
      n4["answers<br/>rollout"]
      n0 -->|"prompts to p"| n1
      n0 -->|"prompts to other"| n2
      n1 -->|"rows to p"| n2
      n3 -->|"model"| n4
      n0 -->|"prompts"| n4
    "##);
}

#[test]
fn dot_has_every_stage_and_the_ports_of_every_edge() {
    insta::assert_snapshot!(drawn("dot"), @r##"
    digraph "drawn" {
      node [shape=box];
      n0 [label="prompts\nsource"];
      n1 [label="end\nsql"];
      n2 [label="kinds\nsql"];
      n3 [label="base\ninit-model"];
      n4 [label="answers\nrollout"];
      n0 -> n1 [label="prompts to p"];
      n0 -> n2 [label="prompts to other"];
      n1 -> n2 [label="rows to p"];
      n3 -> n4 [label="model"];
      n0 -> n4 [label="prompts"];
    }
    "##);
}

#[test]
fn a_wrong_pipeline_is_not_drawn() {
    let project = Project::new();
    project.write("p.yaml", &PIPELINE.replace("p: end,", "p: ende,"));
    let finished = project.call(&["graph", "p.yaml"]).expect(2);
    assert!(finished.stdout.is_empty());
    assert!(
        finished.stderr.contains("there is no stage `ende`"),
        "{}",
        finished.stderr
    );
}
