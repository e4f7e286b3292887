//! Images as `data:` addresses.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The first bytes of a format and its type.
const FORMATS: [(&[u8], &str); 5] = [
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
];

/// An image file as an address that holds all of it.
pub(crate) fn data_url(bytes: &[u8]) -> String {
    let known = FORMATS.iter().find(|(start, _)| bytes.starts_with(start));
    let media_type = known.map_or("application/octet-stream", |(_, media_type)| media_type);
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}
