//! Answers on the disk, so that a process that is killed has not asked in vain.
//!
//! Whoever asks the same server the same question again finds the answer, until the work that needed it is done.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Finish};
use crate::config::Endpoint;

/// A file of answers that grows, and those that other processes left.
#[derive(Debug)]
pub(crate) struct AnswerLog {
    folder: PathBuf,
    file: File,
    path: PathBuf,
    /// Files of processes that are no more.
    left: Vec<PathBuf>,
}

/// A line of a file.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// Digest of the request.
    request: String,
    text: String,
    is_cut: bool,
    token_ids: Option<Vec<u32>>,
    /// Bits of the numbers, which decimals would not keep.
    logprobs: Option<Vec<u32>>,
    prompt_tokens: u32,
    completion_tokens: u32,
}

impl AnswerLog {
    /// Opens a file in the folder, and reads what was answered by the same server before.
    pub(crate) fn open(
        folder: &Path,
        config: &Endpoint,
        answers: &mut HashMap<blake3::Hash, Answer>,
        most: usize,
    ) -> std::io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        if folder.metadata()?.uid() != Path::new("/proc/self").metadata()?.uid() {
            return Err(std::io::Error::other("the folder belongs to somebody else"));
        }
        let mut content = serde_json::to_value(config)?;
        Endpoint::retain_content(&mut content);
        let server = blake3::hash(content.to_string().as_bytes()).to_hex()[..16].to_owned();
        let mut left = Vec::new();
        for entry in folder.read_dir()?.flatten() {
            let name = entry.file_name();
            let Some((of, rest)) = name.to_str().and_then(|name| name.split_once('-')) else {
                continue;
            };
            let process = rest
                .split('-')
                .next()
                .and_then(|process| process.parse::<u32>().ok());
            if let (true, Some(process)) = (of == server, process) {
                read(&entry.path(), answers, most);
                if !Path::new("/proc").join(process.to_string()).exists() {
                    left.push(entry.path());
                }
            }
        }
        let (path, file) = create(folder, &server)?;
        Ok(Self {
            folder: folder.to_owned(),
            file,
            path,
            left,
        })
    }

    /// Adds an answer.
    pub(crate) fn add(&mut self, request: &blake3::Hash, answer: &Answer) -> std::io::Result<()> {
        let bits = |values: &Vec<f32>| values.iter().map(|value| value.to_bits()).collect();
        let entry = Entry {
            request: request.to_hex().to_string(),
            text: answer.text.clone(),
            is_cut: answer.finish == Finish::Length,
            token_ids: answer.token_ids.clone(),
            logprobs: answer.logprobs.as_ref().map(bits),
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.completion_tokens,
        };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }

    /// What was asked for is done, and nobody needs the answers any more.
    pub(crate) fn remove(&self) {
        for path in self.left.iter().chain([&self.path]) {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
        // Only an empty folder goes.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

fn create(folder: &Path, server: &str) -> std::io::Result<(PathBuf, File)> {
    let process = std::process::id();
    for number in 0_u32.. {
        let path = folder.join(format!("{server}-{process}-{number}.jsonl"));
        let mut options = OpenOptions::new();
        match options
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other("no file name is left"))
}

/// Reads what can be read of a file: its last line may have been cut off.
fn read(path: &Path, answers: &mut HashMap<blake3::Hash, Answer>, most: usize) {
    let Ok(file) = File::open(path) else { return };
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        let Ok(entry) = serde_json::from_slice::<Entry>(&line) else {
            continue;
        };
        let Ok(request) = blake3::Hash::from_hex(&entry.request) else {
            continue;
        };
        if answers.len() >= most {
            return;
        }
        let values = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
        answers.insert(
            request,
            Answer {
                text: entry.text,
                finish: if entry.is_cut {
                    Finish::Length
                } else {
                    Finish::Stop
                },
                token_ids: entry.token_ids,
                logprobs: entry.logprobs.map(values),
                prompt_tokens: entry.prompt_tokens,
                completion_tokens: entry.completion_tokens,
            },
        );
    }
}
