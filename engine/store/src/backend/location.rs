//! The address of a store, taken apart: a folder or a URL, and whether it is to be made unreliable on purpose.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use url::Url;

use crate::{Result, StoreError};

/// What the prefix of a URL asks for a store that fails by seed.
const CHAOS: &str = "chaos+";

/// Where a store is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Location {
    pub(crate) place: Place,
    /// How unreliable it is, for rehearsals.
    pub(crate) chaos: Option<ChaosSettings>,
}

/// The kinds of store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A folder on the local disk, as given.
    Folder(PathBuf),
    /// In the memory of this process, by name.
    Memory(String),
    /// A bucket or container of a cloud, and the prefix in it.
    Cloud {
        cloud: Cloud,
        /// Scheme, bucket and all else before the prefix.
        bucket_url: String,
        bucket: String,
        prefix: String,
    },
}

/// Services that speak HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cloud {
    /// Amazon S3 and all that speak its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// How often a rehearsal fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ChaosSettings {
    pub(crate) seed: u64,
    /// Share of operations that go wrong.
    pub(crate) rate: f64,
}

impl fmt::Display for ChaosSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "seed={}&rate={}", self.seed, self.rate)
    }
}

impl Location {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bad = |message: String| StoreError::Url {
            url: without_secrets(text),
            message,
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self {
                place: Place::Folder(PathBuf::from(text)),
                chaos: None,
            });
        };
        let (chaos, scheme, rest) = match scheme.strip_prefix(CHAOS) {
            None => (None, scheme, rest),
            Some(scheme) => {
                let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
                (
                    Some(ChaosSettings::parse(query).map_err(bad)?),
                    scheme,
                    rest,
                )
            }
        };
        let place = Place::parse(scheme, rest).map_err(bad)?;
        Ok(Self { place, chaos })
    }
}

impl ChaosSettings {
    fn parse(query: &str) -> std::result::Result<Self, String> {
        let mut settings = Self {
            seed: 0,
            rate: 0.05,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let is_read = match name {
                "seed" => value.parse().map(|seed| settings.seed = seed).is_ok(),
                "rate" => value
                    .parse()
                    .ok()
                    .filter(|rate| (0.0..=1.0).contains(rate))
                    .map(|rate| settings.rate = rate)
                    .is_some(),
                _ => {
                    return Err(format!(
                        "unknown setting `{name}`; a store that fails on purpose has `seed` and `rate`, as in \
                         chaos+file:///folder?seed=3&rate=0.05"
                    ));
                }
            };
            if !is_read {
                return Err(format!(
                    "`{name}` cannot be `{value}`; `seed` is a whole number, `rate` is a share between 0 and 1"
                ));
            }
        }
        Ok(settings)
    }
}

impl Place {
    fn parse(scheme: &str, rest: &str) -> std::result::Result<Self, String> {
        let cloud = match scheme {
            "file" => {
                let folder = Url::parse(&format!("file://{rest}"))
                    .ok()
                    .and_then(|url| url.to_file_path().ok());
                return folder
                    .map(Place::Folder)
                    .ok_or_else(|| "is no absolute path".to_owned());
            }
            "memory" => return Self::memory(rest),
            "s3" => Cloud::S3,
            "gs" => Cloud::Google,
            "az" | "abfs" | "abfss" => Cloud::Azure,
            _ => {
                return Err(format!(
                    "unknown kind of store `{scheme}`; use a folder, file://, s3://, gs://, az:// or memory://"
                ));
            }
        };
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|error| error.to_string())?;
        // `abfss://container@account.host/path` has no secret before the `@`.
        let has_user = !url.username().is_empty() && cloud != Cloud::Azure;
        if has_user || url.password().is_some() {
            return Err(
                "credentials do not belong in a URL; give them by environment variables".to_owned(),
            );
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a store's URL has neither `?` nor `#`".to_owned());
        }
        let host = url.host_str().unwrap_or_default();
        if host.is_empty() {
            return Err(format!("names no bucket; write {scheme}://bucket/prefix"));
        }
        let (bucket, authority) = match url.username() {
            "" => (host.to_owned(), host.to_owned()),
            container => (container.to_owned(), format!("{container}@{host}")),
        };
        let prefix = percent_decoded(url.path())?;
        Ok(Self::Cloud {
            cloud,
            bucket_url: format!("{scheme}://{authority}"),
            bucket,
            prefix,
        })
    }

    fn memory(name: &str) -> std::result::Result<Self, String> {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        if name.contains(['/', '?', '#']) {
            return Err("a store in memory has a plain name, as in memory://name".to_owned());
        }
        Ok(Self::Memory(if name.is_empty() {
            format!("store-{}", COUNT.fetch_add(1, Ordering::Relaxed))
        } else {
            name.to_owned()
        }))
    }
}

/// The prefix inside the bucket, without slashes at its ends.
fn percent_decoded(path: &str) -> std::result::Result<String, String> {
    object_store::path::Path::from_url_path(path)
        .map(|path| path.to_string())
        .map_err(|error| error.to_string())
}

/// The address with what may be a password taken out.
fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) if user.contains(':') || !scheme.starts_with("abfs") => {
            format!("{scheme}://...@{}", &rest[user.len() + 1..])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let cloud = |text: &str| match Location::parse(text).unwrap().place {
            Place::Cloud {
                cloud,
                bucket_url,
                bucket,
                prefix,
            } => (cloud, bucket_url, bucket, prefix),
            other => panic!("{other:?}"),
        };
        let owned = |cloud, parts: [&str; 3]| {
            let [url, bucket, prefix] = parts.map(str::to_owned);
            (cloud, url, bucket, prefix)
        };
        assert_eq!(
            cloud("s3://data/a/b/"),
            owned(Cloud::S3, ["s3://data", "data", "a/b"])
        );
        assert_eq!(
            cloud("gs://data"),
            owned(Cloud::Google, ["gs://data", "data", ""])
        );
        assert_eq!(
            cloud("abfss://box@account.dfs.core.windows.net/a"),
            owned(
                Cloud::Azure,
                ["abfss://box@account.dfs.core.windows.net", "box", "a"]
            )
        );
        assert_eq!(
            Location::parse("chaos+file:///tmp/a%20b?seed=3&rate=0.25").unwrap(),
            Location {
                place: Place::Folder(PathBuf::from("/tmp/a b")),
                chaos: Some(ChaosSettings {
                    seed: 3,
                    rate: 0.25
                }),
            }
        );
        // A folder may be called anything.
        assert_eq!(
            Location::parse("runs?1").unwrap().place,
            Place::Folder(PathBuf::from("runs?1"))
        );
    }

    #[test]
    fn stores_in_memory_without_a_name_differ() {
        let one = || Location::parse("memory://").unwrap();
        assert_ne!(one(), one());
        assert_eq!(
            Location::parse("memory://shared").unwrap(),
            Location::parse("memory://shared").unwrap()
        );
    }

    #[test]
    fn bad_addresses_are_refused_without_repeating_secrets() {
        for (text, expected) in [
            ("ftp://host/a", "unknown kind of store `ftp`"),
            ("s3:///prefix", "names no bucket"),
            ("s3://bucket/a?versionId=1", "neither `?` nor `#`"),
            ("s3://key:hunter2@bucket/a", "environment variables"),
            ("s3://hunter2@bucket/a", "environment variables"),
            (
                "abfss://box:hunter2@account.host/a",
                "environment variables",
            ),
            ("chaos+file:///tmp/a?sed=3", "unknown setting `sed`"),
            ("chaos+file:///tmp/a?rate=2", "`rate` cannot be `2`"),
            ("chaos+memory://a/b", "plain name"),
            ("file://relative", "no absolute path"),
        ] {
            let message = Location::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
