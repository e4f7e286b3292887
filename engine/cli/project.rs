//! From the command line to a project: its folder, its store, its checked pipeline.

use std::path::{Path, PathBuf};

use engine_plan::Plan;
use engine_store::Store;
use schemas::Problem;
use schemas::pipeline::{SourceText, compose};
use schemas::yaml::Document;

use crate::args::StoreArgs;
use crate::exit::wrong;

/// Folder of the store inside a project.
const STORE_FOLDER: &str = ".metis";

/// The project of a pipeline file: the parent of the nearest folder above it that is named `pipelines`, else the file's
/// own folder. Relative paths in the file start there.
pub(crate) fn project_folder(file: &Path) -> PathBuf {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let own = absolute.parent().unwrap_or(Path::new("/"));
    let above = own
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "pipelines"));
    above.and_then(Path::parent).unwrap_or(own).to_owned()
}

/// Reads a pipeline file with the files that it includes, then lays the overlays and the settings of the command line over
/// it, in this order. What is wrong in them is kept in the document; planning reports it.
pub(crate) fn read_pipeline(
    file: &Path,
    overlays: &[PathBuf],
    sets: &[String],
) -> anyhow::Result<Document> {
    let main = source(file).map_err(wrong)?;
    let overlays = overlays.iter().map(|file| source(file).map_err(wrong));
    let overlays = overlays.collect::<anyhow::Result<Vec<SourceText>>>()?;
    let mut load = |including: &str, path: &str| {
        let folder = Path::new(including).parent().unwrap_or(Path::new(""));
        source(&folder.join(path))
    };
    Ok(compose(main, overlays, sets, &mut load))
}

fn source(file: &Path) -> Result<SourceText, String> {
    let text = read_text(file)?;
    // The same file under two names is one file.
    let id = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    Ok(SourceText {
        name: file.display().to_string(),
        id: id.display().to_string(),
        text,
    })
}

/// The text of a file, or why there is none.
fn read_text(file: &Path) -> Result<String, String> {
    let name = file.display();
    let bytes = std::fs::read(file)
        .map_err(|error| format!("could not read the pipeline file {name}: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .split(|byte| *byte == b'\n')
            .count();
        format!("the pipeline file {name} is no UTF-8 text: see line {line}")
    })
}

/// The plan of a pipeline, without a look at the files that it names.
pub(crate) fn planned(document: &Document) -> Result<Plan, Vec<Problem>> {
    engine_plan::plan(document, &crate::registry())
}

/// The plan of a pipeline, after every operator had a look at the files that its configuration names.
pub(crate) fn checked(document: &Document, root: &Path) -> Result<Plan, Vec<Problem>> {
    let plan = planned(document)?;
    let mut problems: Vec<Problem> = Vec::new();
    for stage in &plan.stages {
        let faults = stage.config.inspect(root).into_iter();
        problems.extend(
            faults.map(|fault| engine_plan::locate(&plan.document, &stage.name, stage.kind, fault)),
        );
    }
    problems.sort_by_key(|problem| problem.span);
    if problems.is_empty() {
        Ok(plan)
    } else {
        Err(problems)
    }
}

/// Opens the store of a project, making it when it does not exist.
pub(crate) fn open_store(arguments: &StoreArgs, project: &Path) -> anyhow::Result<Store> {
    match &arguments.store {
        Some(url) => open(url),
        None => open(&project.join(STORE_FOLDER).to_string_lossy()),
    }
}

/// Where files for people are put: beside the data of the store, or in the project's folder when the store is a network away.
pub(crate) fn local_folder(store: &Store, project: &Path) -> PathBuf {
    store
        .local_root()
        .map_or_else(|| project.join(STORE_FOLDER), Path::to_owned)
}

/// Opens a store that exists: the one that is named, or that of the project around the current folder.
pub(crate) fn find_store(arguments: &StoreArgs) -> anyhow::Result<Store> {
    let url = match &arguments.store {
        Some(url) => url.clone(),
        None => {
            let here = std::env::current_dir()?;
            let found = here
                .ancestors()
                .map(|folder| folder.join(STORE_FOLDER))
                .find(|folder| folder.is_dir());
            found
                .ok_or_else(|| {
                    let here = here.display();
                    wrong(format!("no store: there is no folder `{STORE_FOLDER}` in {here} or above it; name one with --store"))
                })?
                .to_string_lossy()
                .into_owned()
        }
    };
    if !url.contains("://") && !Path::new(&url).is_dir() {
        return Err(wrong(format!(
            "no store at `{url}`: there is no such folder"
        )));
    }
    open(&url)
}

fn open(url: &str) -> anyhow::Result<Store> {
    Store::open(url).map_err(|error| match error {
        engine_store::StoreError::Url { .. } => wrong(error.to_string()),
        other => other.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_is_above_the_folder_of_pipelines() {
        assert_eq!(
            project_folder(Path::new("/p/pipelines/rise.yaml")),
            Path::new("/p")
        );
        assert_eq!(
            project_folder(Path::new("/p/pipelines/ablations/rl.yaml")),
            Path::new("/p")
        );
        assert_eq!(
            project_folder(Path::new("/p/other/rise.yaml")),
            Path::new("/p/other")
        );
    }
}
