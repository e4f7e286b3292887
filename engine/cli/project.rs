//! From the command line to a project: its folder, its store, its checked pipeline.

use std::path::{Path, PathBuf};

use engine_store::Store;

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

/// Opens the store of a project, making it when it does not exist.
pub(crate) fn open_store(arguments: &StoreArgs, project: &Path) -> anyhow::Result<Store> {
    match &arguments.store {
        Some(url) => open(url),
        None => open(&project.join(STORE_FOLDER).to_string_lossy()),
    }
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
