//! Images that rows refer to: bytes, `data:` addresses, and files whose folder counts for the stage key.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::cell::Cell;

/// The largest image file that is read.
const LONGEST: u64 = 64 << 20;

/// Where image files may be: only there is their content part of the stage key.
#[derive(Clone, Debug)]
pub(super) struct Media {
    /// The folder, without links.
    folder: Option<PathBuf>,
}

impl Media {
    /// Files may be in this folder; none may without one.
    pub(super) fn new(folder: Option<&Path>) -> Self {
        Self {
            folder: folder.and_then(|folder| folder.canonicalize().ok()),
        }
    }

    /// The bytes of an image. `beside` is the folder of the file that refers to it.
    pub(super) fn load(&self, image: &Cell, beside: &Path) -> Result<Vec<u8>, String> {
        match image {
            Cell::Bytes(bytes) => Ok(bytes.clone()),
            Cell::Text(text) => self.at(text.trim(), beside),
            Cell::Struct(_) => {
                let filled = |name: &str| image.at(name).filter(|cell| !cell.is_blank());
                let names = ["bytes", "path", "image", "url", "file_name", "image_url"];
                match names.into_iter().find_map(filled) {
                    Some(inner @ (Cell::Bytes(_) | Cell::Text(_))) => self.load(inner, beside),
                    Some(inner) if inner.at("url").is_some() => self.load(inner, beside),
                    _ => Err("it has neither `bytes` nor a `path`".to_owned()),
                }
            }
            Cell::Null => Err("it has no bytes".to_owned()),
            other => Err(format!("it is {}", other.kind())),
        }
    }

    fn at(&self, address: &str, beside: &Path) -> Result<Vec<u8>, String> {
        if let Some(data) = address.strip_prefix("data:") {
            let (_, body) = data
                .split_once(";base64,")
                .ok_or("its `data:` address is not in base64")?;
            return STANDARD
                .decode(body.trim())
                .map_err(|error| format!("its `data:` address is broken: {error}"));
        }
        let address = address.strip_prefix("file://").unwrap_or(address);
        if address.contains("://") {
            return Err(format!(
                "`{}` is on the network; download it into a folder and name that with `media`",
                shown(address)
            ));
        }
        self.file(address, beside)
    }

    fn file(&self, address: &str, beside: &Path) -> Result<Vec<u8>, String> {
        let Some(folder) = &self.folder else {
            return Err(format!(
                "`{}` is a file; name the folder of the images with `media`, so that their content counts for the stage",
                shown(address)
            ));
        };
        let above = folder.parent().unwrap_or(folder);
        let places = [
            folder.join(address),
            beside.join(address),
            above.join(address),
        ];
        // What leads out of the folder does not count for the key, and is not there.
        let is_inside = |path: &PathBuf| path.starts_with(folder) && path.is_file();
        let mut paths = places.iter().filter_map(|place| place.canonicalize().ok());
        let path = paths.find(is_inside).ok_or_else(|| {
            format!(
                "there is no file `{}` in {}",
                shown(address),
                folder.display()
            )
        })?;
        let cannot =
            |error: std::io::Error| format!("`{}` cannot be read: {error}", shown(address));
        if path.metadata().map_err(cannot)?.len() > LONGEST {
            return Err(format!("`{}` is larger than 64 MiB", shown(address)));
        }
        std::fs::read(path).map_err(cannot)
    }
}

/// The start of an address.
fn shown(address: &str) -> String {
    address.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_taken_from_the_named_folder_alone() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        std::fs::create_dir(&images).unwrap();
        std::fs::write(images.join("a.png"), b"a").unwrap();
        std::fs::write(folder.path().join("out.png"), b"out").unwrap();
        let load =
            |media: &Media, text: &str| media.load(&Cell::Text(text.to_owned()), folder.path());
        let media = Media::new(Some(&images));
        for path in ["a.png", "images/a.png", "./images/../images/a.png"] {
            assert_eq!(load(&media, path).unwrap(), b"a", "{path}");
        }
        let absolute = images.join("a.png");
        assert_eq!(load(&media, absolute.to_str().unwrap()).unwrap(), b"a");
        for path in ["out.png", "../out.png", "/etc/hostname"] {
            assert!(
                load(&media, path).unwrap_err().contains("there is no file"),
                "{path}"
            );
        }
        assert!(
            load(&Media::new(None), "a.png")
                .unwrap_err()
                .contains("`media`")
        );
        assert!(
            load(&media, "https://a/b.png")
                .unwrap_err()
                .contains("download")
        );
        assert_eq!(load(&media, "data:image/png;base64,YWI=").unwrap(), b"ab");
        assert!(load(&media, "data:image/png,ab").is_err());
    }
}
