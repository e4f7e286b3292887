//! `export`: a dataset as a file or a Hugging Face folder, a model as a folder. All of it is written batch by batch, and
//! appears under its name when it is whole.

mod card;
mod hugging_face;
mod text;

use std::path::Path;

use engine_core::{Artifact, Dataset, ModelFolder};
use engine_store::{ParquetFile, Store};

use crate::args::{ExportArgs, ExportForm};
use crate::exit::{Exit, wrong};
use crate::output::{publish_file, publish_folder, write_file};
use crate::project::find_store;
use crate::select::{Runs, artifact};
use crate::text::count;

/// A table and where it is from.
struct Exported {
    /// For people: `stage` or `stage.port`.
    name: String,
    pipeline: Option<String>,
    run: Option<String>,
    artifact: Artifact,
}

pub(crate) fn export(arguments: &ExportArgs) -> anyhow::Result<Exit> {
    let store = find_store(&arguments.store)?;
    let exported = find(&store, &arguments.what)?;
    match &exported.artifact {
        Artifact::Dataset(dataset) => export_dataset(&store, &exported, dataset, arguments)?,
        Artifact::Model(_) if arguments.format.is_some() => {
            return Err(wrong(format!(
                "`{}` is a model, which is exported as a folder: leave out --format",
                arguments.what
            )));
        }
        Artifact::Model(model) => export_model(&store, model, &arguments.to)?,
    }
    Ok(Exit::Done)
}

/// What a word names, as `export` takes it.
///
/// # Errors
/// When it names nothing or several things, or the store fails.
pub(super) fn artifact_of(store: &Store, what: &str) -> anyhow::Result<Artifact> {
    Ok(find(store, what)?.artifact)
}

fn find(store: &Store, what: &str) -> anyhow::Result<Exported> {
    let runs = Runs::open(store)?;
    if let Some(found) = runs.stage_of(what)? {
        let stage = &found.record.stage;
        let manifest = runs.result_of(found.record)?.ok_or_else(|| {
            wrong(format!(
                "stage `{stage}` has no result yet; run the pipeline first"
            ))
        })?;
        return Ok(Exported {
            artifact: artifact(stage, &manifest, found.port)?,
            name: what.split('@').next().unwrap_or(what).to_owned(),
            pipeline: Some(found.run.started.pipeline.clone()),
            run: Some(found.run.started.run.clone()),
        });
    }
    let Some(manifest) = runs.by_digits(what)? else {
        return Err(match runs.latest() {
            Ok(run) => wrong(format!(
                "no run of this store has a stage `{what}`; stages of the latest run are {}",
                crate::select::names(run)
            )),
            Err(error) => error,
        });
    };
    let mut outputs = manifest.outputs.values();
    let named = outputs.find(|artifact| artifact.digest().as_str().starts_with(what));
    Ok(Exported {
        artifact: match named {
            Some(artifact) => artifact.clone(),
            None => artifact(what, &manifest, None)?,
        },
        name: what.to_owned(),
        pipeline: None,
        run: None,
    })
}

/// The form that was asked for, else that of the file's name.
fn form(arguments: &ExportArgs) -> anyhow::Result<ExportForm> {
    let extension = arguments
        .to
        .extension()
        .and_then(|extension| extension.to_str());
    match (arguments.format, extension) {
        (Some(form), _) => Ok(form),
        (None, Some("parquet")) => Ok(ExportForm::Parquet),
        (None, Some("jsonl")) => Ok(ExportForm::Jsonl),
        (None, Some("csv")) => Ok(ExportForm::Csv),
        (None, _) => Err(wrong(format!(
            "`{}` does not end in .parquet, .jsonl or .csv, which a table needs; `--format hf` makes a Hugging Face folder of it",
            arguments.to.display()
        ))),
    }
}

fn export_dataset(
    store: &Store,
    exported: &Exported,
    dataset: &Dataset,
    arguments: &ExportArgs,
) -> anyhow::Result<()> {
    let to = arguments.to.as_path();
    match form(arguments)? {
        ExportForm::Parquet => publish_file(to, |draft| {
            let mut file = ParquetFile::create(draft, store.schema(dataset)?)?;
            for batch in store.read(dataset) {
                file.write(&batch?)?;
            }
            Ok(file.finish()?)
        })?,
        ExportForm::Jsonl => write_file(to, |out| text::json_lines(store, dataset, out))?,
        ExportForm::Csv => write_file(to, |out| text::csv(store, dataset, out))?,
        ExportForm::Hf => publish_folder(to, "a dataset", |folder| {
            hugging_face::write(store, exported, dataset, &arguments.split, folder)
        })?,
    }
    eprintln!(
        "{} rows of `{}` are in {}",
        count(dataset.rows),
        dataset.table,
        to.display()
    );
    Ok(())
}

fn export_model(store: &Store, model: &ModelFolder, to: &Path) -> anyhow::Result<()> {
    publish_folder(to, "a model", |folder| Ok(store.copy_model(model, folder)?))?;
    eprintln!(
        "the model's {} files are in {}",
        model.files.len(),
        to.display()
    );
    Ok(())
}
