//! Images and other media: one object for each content, named by its digest.

use engine_core::Digest;

use crate::{Result, Store, StoreError, layout};

impl Store {
    /// Stores media and returns its digest. The same bytes are stored once.
    ///
    /// # Errors
    /// When the store fails.
    pub fn put_media(&self, bytes: &[u8]) -> Result<String> {
        let digest = Digest::of(bytes).to_string();
        self.create_content(&layout::media(&digest), bytes.to_vec())?;
        Ok(digest)
    }

    /// The bytes of stored media.
    ///
    /// # Errors
    /// When there is none with this digest, its bytes are damaged, or the store fails.
    pub fn media(&self, digest: &str) -> Result<Vec<u8>> {
        let path = layout::media(digest);
        let bytes = self.get(&path)?;
        if Digest::of(&bytes).as_str() != digest {
            return Err(StoreError::Corrupt {
                path,
                message: "its bytes do not have the digest that it is named by".to_owned(),
            });
        }
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_comes_back_by_digest_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let digest = store.put_media(b"an image").unwrap();
        assert_eq!(store.put_media(b"an image").unwrap(), digest);
        assert_eq!(store.media(&digest).unwrap(), b"an image");
        std::fs::write(folder.path().join("v1/media").join(&digest), b"another").unwrap();
        assert!(matches!(
            store.media(&digest),
            Err(StoreError::Corrupt { .. })
        ));
    }
}
