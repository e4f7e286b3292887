//! Datasets as Hugging Face folders.

use std::fs::{self, File};

use arrow::array::{Array as _, AsArray as _};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::support::{Place, Project};

on_every_store!(a_dataset_goes_out_with_its_images);

const PIPELINE: &str = "
version: 1
name: exported
seed: 1
stages:
  prompts:
    source: { path: $repo/examples/data/test.parquet, columns: { id: id, solution: solution, category: kind } }
  few:
    inputs: { p: prompts }
    sql: { query: 'select prompt_id, answer from p order by prompt_id limit 3' }
";

fn a_dataset_goes_out_with_its_images(place: Place) {
    let project = Project::at(place);
    project.write("p.yaml", PIPELINE);
    project.run("p.yaml");
    project
        .call(&[
            "export", "prompts", "--to", "data", "--format", "hf", "--split", "test",
        ])
        .expect(0);
    let card = fs::read_to_string(project.path("data/README.md")).unwrap();
    assert!(
        card.starts_with("---\nconfigs:\n") && card.contains("path: data/test-*.parquet"),
        "{card}"
    );
    let file = project.path("data/data/test-00000-of-00001.parquet");
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap();
    let info: Value = serde_json::from_str(&reader.schema().metadata()["huggingface"]).unwrap();
    let features = &info["info"]["features"];
    assert_eq!(features["images"]["feature"]["_type"], "Image");
    assert_eq!(features["prompt_id"]["dtype"], "large_string");
    let mut rows = 0;
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let images = batch.column_by_name("images").unwrap().as_list::<i64>();
        for row in 0..batch.num_rows() {
            let images = images.value(row);
            assert!(!images.is_empty(), "every question shows a picture");
            let images = images.as_struct();
            let bytes = images.column_by_name("bytes").unwrap().as_binary::<i32>();
            let path = images.column_by_name("path").unwrap().as_string::<i32>();
            assert!(bytes.value(0).starts_with(b"\x89PNG"));
            assert!(path.value(0).rsplit('.').next() == Some("png"));
        }
        rows += batch.num_rows();
    }
    assert_eq!(rows, 900);

    let again = project
        .call(&["export", "prompts", "--to", "data", "--format", "hf"])
        .expect(2);
    assert!(again.stderr.contains("no empty folder"), "{}", again.stderr);
    let unclear = project.call(&["export", "few", "--to", "few"]).expect(2);
    assert!(unclear.stderr.contains("--format hf"), "{}", unclear.stderr);
    project
        .call(&["export", "few", "--to", "few", "--format", "hf"])
        .expect(0);
    let left: Vec<_> = fs::read_dir(project.path("few/data")).unwrap().collect();
    assert_eq!(left.len(), 1, "a table without pictures is one shard");
}
