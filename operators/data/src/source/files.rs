//! The data files behind a path: which of a folder's files they are, and of which format.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use engine_core::{Fault, OperatorError};

use super::Source;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;
/// How deep folders are looked through.
const DEPTH: usize = 8;

/// How the rows of a file are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Parquet,
    /// Arrow streams and files, as `save_to_disk` of Hugging Face `datasets` writes them.
    Arrow,
    /// JSON, one value a line.
    Lines,
    /// JSON, as a list or as values that follow each other.
    Json,
    /// Text with a byte between columns.
    Table(u8),
}

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
}

/// A file with rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    pub(super) format: Format,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Files with rows, in the order of their names; of classes none.
    pub(super) files: Vec<DataFile>,
    pub(super) kind: Kind,
    /// Whether all bytes of the folder count for the stage key, images beside the data included.
    pub(super) counts_whole: bool,
}

/// What the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows.
    Rows,
    /// Rows that describe the images beside them.
    Metadata,
    /// Images, in folders that are named like their answers.
    Classes(Vec<PathBuf>),
}

/// Endings of images that are read.
const IMAGES: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "jfif"];
/// What Hugging Face tools write beside data.
const NO_DATA: [&str; 6] = [
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "package.json",
    "tsconfig.json",
];
/// What file names end in.
pub(super) const ENDINGS: &str =
    ".parquet, .arrow, .jsonl, .ndjson, .json, .csv, .tsv, and the last five with .gz or .zst";

/// Finds the files.
pub(super) fn find(root: &Path, config: &Source) -> Result<Found, Fault> {
    let full = root.join(&config.path);
    if !full.is_dir() {
        let format = format_of(&full)?;
        return Ok(Found {
            files: vec![DataFile { path: full, format }],
            kind: Kind::Rows,
            counts_whole: false,
        });
    }
    let direct = list(&full)?;
    let parquet: Vec<PathBuf> = direct.into_iter().filter(|path| is_parquet(path)).collect();
    let counts_whole = parquet.is_empty();
    let (mut files, mut images) = (parquet, Vec::new());
    if counts_whole {
        walk(&full, 0, &mut files, &mut images)?;
    }
    let has_metadata = files.iter().any(|file| is_metadata(file));
    if has_metadata {
        files.retain(|file| is_metadata(file));
    }
    let is_classes = files.is_empty() && !images.is_empty();
    let mut chosen = if is_classes { images } else { files };
    if chosen.is_empty() {
        return Err(Fault::at(
            "missing-file",
            "path",
            format!(
                "the folder `{}` has no file with data",
                config.path.display()
            ),
        )
        .with_help(format!(
            "data files end in {ENDINGS}; images in {}",
            IMAGES.join(", ")
        )));
    }
    chosen.sort();
    let chosen = of_split(&full, chosen, config)?;
    if is_classes {
        return Ok(Found {
            files: Vec::new(),
            kind: Kind::Classes(chosen),
            counts_whole,
        });
    }
    let known = |path: PathBuf| {
        let format = named_format(&path).unwrap_or(Format::Parquet);
        DataFile { path, format }
    };
    Ok(Found {
        files: chosen.into_iter().map(known).collect(),
        kind: if has_metadata {
            Kind::Metadata
        } else {
            Kind::Rows
        },
        counts_whole,
    })
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let unreadable = |error: io::Error| {
        Fault::at(
            "unreadable-file",
            "path",
            format!("cannot list {}: {error}", folder.display()),
        )
    };
    let mut paths = Vec::new();
    for entry in folder.read_dir().map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn walk(
    folder: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
    images: &mut Vec<PathBuf>,
) -> Result<(), Fault> {
    for path in list(folder)? {
        if path.is_dir() {
            if depth < DEPTH {
                walk(&path, depth + 1, files, images)?;
            }
        } else if is_image(&path) {
            images.push(path);
        } else if is_data(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn is_parquet(path: &Path) -> bool {
    ending(path).as_deref() == Some("parquet")
}

pub(super) fn is_image(path: &Path) -> bool {
    ending(path).is_some_and(|ending| IMAGES.contains(&ending.as_str()))
}

fn is_data(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    // `datasets` leaves what it computed beside what it saved.
    let is_leftover =
        |name: &str| name.starts_with("cache-") && named_format(path) == Some(Format::Arrow);
    named_format(path).is_some()
        && name.is_some_and(|name| !NO_DATA.contains(&name) && !is_leftover(name))
}

fn is_metadata(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("metadata.")) && is_data(path)
}

fn ending(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

fn packing(path: &Path) -> Packing {
    match ending(path).as_deref() {
        Some("gz") => Packing::Gzip,
        Some("zst" | "zstd") => Packing::Zstd,
        _ => Packing::None,
    }
}

/// The format that a name tells.
fn named_format(path: &Path) -> Option<Format> {
    let inner = match packing(path) {
        Packing::None => path.to_owned(),
        _ => path.with_extension(""),
    };
    let is_packed = inner != path;
    match ending(&inner)?.as_str() {
        "jsonl" | "ndjson" => Some(Format::Lines),
        "json" => Some(Format::Json),
        "csv" => Some(Format::Table(b',')),
        "tsv" => Some(Format::Table(b'\t')),
        "parquet" if !is_packed => Some(Format::Parquet),
        "arrow" if !is_packed => Some(Format::Arrow),
        _ => None,
    }
}

/// The format of a file that the pipeline names.
fn format_of(path: &Path) -> Result<Format, Fault> {
    if let Some(format) = named_format(path) {
        return Ok(format);
    }
    let mut start = Vec::new();
    // What cannot be opened is told where it is read.
    if let Ok(file) = File::open(path) {
        let _ = file.take(4).read_to_end(&mut start);
    }
    if start == b"PAR1" || start.is_empty() {
        return Ok(Format::Parquet);
    }
    Err(Fault::at(
        "unknown-format",
        "path",
        format!("`{}` does not say by its name what it is", path.display()),
    )
    .with_help(format!("rename it; data files end in {ENDINGS}")))
}

/// The files of the split that the pipeline names. Files of several splits are never read together unasked: a test set would
/// be trained on.
fn of_split(root: &Path, files: Vec<PathBuf>, config: &Source) -> Result<Vec<PathBuf>, Fault> {
    let split = |file: &PathBuf| split_of(file.strip_prefix(root).unwrap_or(file));
    let mut found: Vec<&'static str> = files.iter().filter_map(split).collect();
    found.sort_unstable();
    found.dedup();
    let shown = found.join("`, `");
    let Some(wanted) = &config.split else {
        if found.len() < 2 {
            return Ok(files);
        }
        return Err(Fault::at(
            "ambiguous-split",
            "path",
            format!("`{}` has the splits `{shown}`", config.path.display()),
        )
        .with_help(format!(
            "write which one is read, as in `split: {}`",
            found.last().copied().unwrap_or("train")
        )));
    };
    let has_word = |file: &PathBuf| {
        let relative = file.strip_prefix(root).unwrap_or(file);
        split(file).is_some_and(|split| split == wanted)
            || words(relative).any(|word| word == *wanted)
    };
    let chosen: Vec<PathBuf> = files.into_iter().filter(has_word).collect();
    if chosen.is_empty() {
        let fault = Fault::at(
            "missing-file",
            "split",
            format!("`{}` has no split `{wanted}`", config.path.display()),
        );
        return Err(match found[..] {
            [] => fault.with_help("its files name no splits; leave `split` out"),
            _ => fault.with_help(format!("it has `{shown}`")),
        });
    }
    Ok(chosen)
}

/// The words of a path: what stands between other characters than letters and digits.
fn words(path: &Path) -> impl Iterator<Item = String> {
    let text = path.with_extension("").to_string_lossy().to_lowercase();
    let words: Vec<String> = text
        .split(|character: char| !character.is_alphanumeric())
        .map(str::to_owned)
        .collect();
    words.into_iter()
}

/// The split that a path names, by the words that the Hugging Face hub goes by.
fn split_of(path: &Path) -> Option<&'static str> {
    words(path).find_map(|word| match word.as_str() {
        "train" | "training" => Some("train"),
        "test" | "testing" | "eval" | "evaluation" => Some("test"),
        "validation" | "valid" | "val" | "dev" => Some("validation"),
        _ => None,
    })
}

/// Opens a text file, unpacked.
pub(super) fn open_text(path: &Path) -> Result<Box<dyn BufRead + Send>, OperatorError> {
    let file = File::open(path).map_err(|source| OperatorError::File {
        message: "cannot open the data file".to_owned(),
        path: path.to_owned(),
        source,
    })?;
    let file = BufReader::with_capacity(BUFFER, file);
    Ok(match packing(path) {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(BufReader::with_capacity(
            BUFFER,
            flate2::bufread::MultiGzDecoder::new(file),
        )),
        Packing::Zstd => {
            let decoder =
                zstd::Decoder::with_buffer(file).map_err(|source| OperatorError::File {
                    message: "cannot unpack the data file".to_owned(),
                    path: path.to_owned(),
                    source,
                })?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_words_of_a_path() {
        let split = |path: &str| split_of(Path::new(path));
        assert_eq!(split("data/train-00000-of-00001.parquet"), Some("train"));
        assert_eq!(split("gsm8k_test.jsonl.gz"), Some("test"));
        assert_eq!(split("val/cat/1.png"), Some("validation"));
        assert_eq!(split("pretrain-base.parquet"), None);
    }

    #[test]
    fn names_tell_the_format() {
        let format = |name: &str| named_format(Path::new(name));
        assert_eq!(format("a.JSONL"), Some(Format::Lines));
        assert_eq!(format("a.b.json.gz"), Some(Format::Json));
        assert_eq!(format("a.csv.zst"), Some(Format::Table(b',')));
        assert_eq!(format("a.parquet.gz"), None);
        assert_eq!(format("README"), None);
    }
}
