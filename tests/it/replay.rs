//! Rows in quarantine are tried again after a fix, and no others.

use std::fs;

use serde_json::json;

use crate::support::{Outcome, Place, Project, python};
use crate::tables::{sums, write};

on_every_store!(only_rows_in_quarantine_are_tried_again);

const PIPELINE: &str = "
version: 1
name: replayed
seed: 1
stages:
  prompts: { source: { path: sums.parquet, columns: { id: id } } }
  lengths:
    inputs: { rows: prompts }
    quarantine: { rows: 3 }
    exec:
      command: [PYTHON, lengths.py, FOLDER]
      files: [lengths.py]
      columns: [prompt_id, answer]
      keep: [prompt_id]
      rows: one-to-one
      output: { table: rows, columns: { length: integer? } }
      errors: true
      timeout-seconds: 60
      memory-mb: 2000
  total:
    inputs: { l: lengths.rows }
    sql: { query: 'select count(*) as n from l' }
";

/// Fails for the answers that a file names, and says which it was given.
const PROGRAM: &str = "
import pathlib, sys
import pyarrow as pa
folder = pathlib.Path(sys.argv[1])
broken = (folder / 'broken').read_text().split()
with pa.ipc.open_stream(sys.stdin.buffer) as reader:
    rows = reader.read_all()
answers = rows['answer'].to_pylist()
with open(folder / 'seen', 'a') as seen:
    seen.write(''.join(f'{answer}\\n' for answer in answers))
lengths = pa.array([None if a in broken else len(a) for a in answers], pa.int64())
errors = pa.array([f'no length of {a}' if a in broken else None for a in answers], pa.string())
out = pa.table({'length': lengths, 'error': errors})
with pa.ipc.new_stream(sys.stdout.buffer, out.schema) as writer:
    writer.write_table(out)
";

fn only_rows_in_quarantine_are_tried_again(place: Place) {
    let project = Project::at(place);
    write(&project.path("sums.parquet"), &sums(0..8));
    let folder = project.path("outside");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("broken"), "3 5").unwrap();
    fs::write(project.path("lengths.py"), PROGRAM).unwrap();
    let pipeline = PIPELINE
        .replace("PYTHON", python().to_str().unwrap())
        .replace("FOLDER", folder.to_str().unwrap());
    project.write("p.yaml", &pipeline);
    let first = project.run("p.yaml");
    let lengths = first.0["stages"][1].clone();
    assert_eq!(
        (&lengths["rows"], &lengths["parts"]["quarantined"]),
        (&json!(6), &json!(2))
    );
    let shown = project.call(&["show", "lengths"]).expect(0).stdout;
    assert!(
        shown.contains("no length of 3") && shown.contains("no length of 5"),
        "{shown}"
    );

    // One of the two rows can be computed now.
    fs::write(folder.join("broken"), "5").unwrap();
    fs::remove_file(folder.join("seen")).unwrap();
    let replay = project
        .call(&["replay", "lengths", "--json"])
        .expect(0)
        .json();
    assert_eq!(
        replay["replay"],
        json!({ "stage": "lengths", "tried": 2, "fixed": 1, "failing": 1 })
    );
    let seen = fs::read_to_string(folder.join("seen")).unwrap();
    assert_eq!(seen, "3\n5\n");
    let second = project.run("p.yaml");
    assert_eq!(second.ran(), ["total"]);
    assert_eq!(second.0["stages"][1]["rows"], 7);

    fs::write(folder.join("broken"), "").unwrap();
    let said = project
        .call(&["replay", "lengths", "p.yaml"])
        .expect(0)
        .stdout;
    assert!(
        said.contains("1 rows tried again, 1 fixed, 0 still failing"),
        "{said}"
    );
    let nothing = project
        .call(&["replay", "lengths", "p.yaml"])
        .expect(0)
        .stdout;
    assert!(nothing.contains("no rows in quarantine"), "{nothing}");
    let wrong = project.call(&["replay", "total", "p.yaml"]).expect(2);
    assert!(
        wrong.stderr.contains("has no quarantine"),
        "{}",
        wrong.stderr
    );
    let last = project.call(&["run", "p.yaml", "--json"]).expect(0);
    assert_eq!(Outcome(last.json()).0["stages"][1]["rows"], 8);
}
