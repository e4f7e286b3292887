//! What a change of the pipeline, the data or the store makes run again, and what not.

use std::fs;

use crate::support::Project;

const PIPELINE: &str = "
version: 1
name: cached
seed: 1
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select * from p order by prompt_id limit 30' }
  kinds:
    inputs: { few: few }
    sql: { query: 'select category, count(*) as prompts from few group by category order by category' }
  longest:
    inputs: { few: few }
    sql: { query: 'select prompt_id, length(solution) as length from few order by length desc, prompt_id limit 3' }
";

fn project() -> Project {
    let project = Project::new();
    project.write("p.yaml", PIPELINE);
    project
}

/// Runs the changed pipeline in the same store and says what ran again.
fn ran_after(project: &Project, change: impl Fn(&str) -> String) -> Vec<String> {
    project.run("p.yaml");
    project.write("p.yaml", &change(PIPELINE));
    project.run("p.yaml").ran()
}

#[test]
fn a_second_run_finds_everything_with_the_same_digests() {
    let project = project();
    let first = project.run("p.yaml");
    assert_eq!(first.ran(), ["few", "kinds", "longest", "prompts"]);
    let second = project.run("p.yaml");
    assert!(
        second.statuses().values().all(|status| status == "cached"),
        "{:?}",
        second.statuses()
    );
    assert_eq!(second.digests(), first.digests());
}

#[test]
fn comments_order_and_white_space_run_nothing_again() {
    let reordered = |text: &str| {
        let (head, stages) = text.split_once("stages:").unwrap();
        let (before, last) = stages.split_once("  longest:").unwrap();
        let stages = before
            .replace("source: { path: ", "source:   { path:   ")
            .replace(
                "columns: { id: id, solution: solution,",
                "columns: { solution: solution, id: id,",
            );
        format!("# A comment.\n{head}\nstages:\n  longest:{last}{stages}")
    };
    assert_eq!(ran_after(&project(), reordered), [""; 0]);
}

#[test]
fn other_names_and_another_place_run_nothing_again() {
    let project = project();
    project.run("p.yaml");
    project.write(
        "elsewhere/q.yaml",
        &PIPELINE
            .replace("name: cached", "name: other")
            .replace("few", "some"),
    );
    let store = project.path(".metis");
    let finished = project
        .call(&[
            "run",
            "elsewhere/q.yaml",
            "--json",
            "--threads",
            "1",
            "--store",
            store.to_str().unwrap(),
        ])
        .expect(0);
    let outcome = crate::support::Outcome(finished.json());
    // The names of tables inside a query are part of the query, so only the stages that write other SQL run.
    assert_eq!(outcome.ran(), ["kinds", "longest"]);
}

#[test]
fn a_changed_query_runs_that_stage_and_stops_where_rows_are_equal() {
    let project = project();
    assert_eq!(
        ran_after(&project, |text| text
            .replace("desc, prompt_id", "asc, prompt_id")),
        ["longest"]
    );
    // Other text, the same rows: what follows stays cached.
    let same_rows = |text: &str| text.replace("limit 30", "limit 30 offset 0");
    assert_eq!(ran_after(&project, same_rows), ["few"]);
    assert_eq!(
        ran_after(&project, |text| text.replace("limit 30", "limit 29")),
        ["few", "kinds", "longest"]
    );
}

#[test]
fn a_seed_runs_nothing_again_that_draws_nothing() {
    assert_eq!(
        ran_after(&project(), |text| text.replace("seed: 1", "seed: 2")),
        [""; 0]
    );
}

#[test]
fn a_moved_data_file_changes_nothing_and_a_changed_one_does() {
    let project = project();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/test.parquet");
    fs::copy(data, project.path("moved.parquet")).unwrap();
    let with = |name: &str| PIPELINE.replace("$repo/examples/data/test.parquet", name);
    assert_eq!(ran_after(&project, |_| with("moved.parquet")), [""; 0]);
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/train.parquet");
    fs::copy(other, project.path("moved.parquet")).unwrap();
    assert_eq!(
        project.run("p.yaml").ran(),
        ["few", "kinds", "longest", "prompts"]
    );
}

#[test]
fn a_lost_or_cut_part_is_made_again_and_nothing_else() {
    let project = project();
    let first = project.run("p.yaml");
    let shown = project.call(&["show", "few", "--json"]).expect(0).json();
    let part = shown["manifest"]["outputs"]["rows"]["dataset"]["parts"][0]["path"]
        .as_str()
        .unwrap()
        .to_owned();
    let part = project.path(".metis").join(part);
    let whole = fs::read(&part).unwrap();
    let cut = whole.len() / 2;
    for (damage, words) in [
        (None, "is missing"),
        (Some(&whole[..cut]), "bytes instead of"),
    ] {
        match damage {
            None => fs::remove_file(&part).unwrap(),
            Some(bytes) => fs::write(&part, bytes).unwrap(),
        }
        let plan = project.call(&["plan", "p.yaml", "--json"]).expect(0).json();
        assert!(
            plan["stages"][1]["reason"]
                .as_str()
                .unwrap()
                .contains(words),
            "{plan}"
        );
        let second = project.run("p.yaml");
        assert_eq!(second.ran(), ["few"]);
        assert_eq!(second.digests(), first.digests());
        assert!(
            second.0["stages"][1]["warnings"]
                .to_string()
                .contains("cannot be used"),
            "{}",
            second.0
        );
        assert_eq!(fs::read(&part).unwrap(), whole);
    }
}

#[test]
fn two_runs_at_once_on_one_store_agree() {
    let project = project();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| project.run("p.yaml").digests()))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(outcomes.iter().all(|digests| *digests == outcomes[0]));
    assert_eq!(project.run("p.yaml").digests(), outcomes[0]);
}

#[test]
fn equal_work_under_two_names_is_done_once() {
    let project = Project::new();
    let twin = "  few-again:\n    inputs: { p: prompts }\n    sql: { query: 'select * from p order by prompt_id limit 30' }\n";
    project.write("p.yaml", &format!("{PIPELINE}{twin}"));
    let outcome = project.run("p.yaml");
    let statuses = outcome.statuses();
    let mut pair = [statuses["few"].as_str(), statuses["few-again"].as_str()];
    pair.sort_unstable();
    assert_eq!(pair, ["cached", "done"]);
    assert_eq!(
        outcome.digests()["few.rows"],
        outcome.digests()["few-again.rows"]
    );
}
