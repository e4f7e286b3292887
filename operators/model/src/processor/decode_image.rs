//! From the bytes of an image file to 8-bit red, green and blue, with the values that Pillow's `convert("RGB")` gives.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::jpeg;
use super::resize::{CHANNELS, RgbPixels};

/// An image with more pixels is refused before it is unpacked: a small file can hold a huge one. Pillow's limit.
const MAX_PIXELS: u64 = 89_478_485;

/// Memory that unpacking may take: the pixels at 16 bits for each of four channels, and something for the decoder.
const MAX_BYTES: u64 = 1 << 30;

/// Unpacks an image file, turned as its metadata says. Transparency is dropped.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbPixels, String> {
    let unreadable = |error: image::ImageError| format!("not a readable image: {error}");
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| format!("not a readable image: {error}"))?;
    let is_jpeg = reader.format() == Some(ImageFormat::Jpeg);
    if is_jpeg && !jpeg_has_end(bytes) {
        return Err("not a readable image: the JPEG file is cut short".into());
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err("not a readable image: it has no pixels".into());
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "{width} x {height} pixels: more than the {MAX_PIXELS} that an image may have; make it smaller"
        ));
    }
    let orientation = decoder.orientation().map_err(unreadable)?;
    let exact = if is_jpeg {
        jpeg::decode(bytes, width as usize, height as usize)
    } else {
        None
    };
    let exact = exact.and_then(|pixels| RgbImage::from_raw(width, height, pixels.values));
    let mut image = match exact {
        Some(pixels) => pixels.into(),
        None => DynamicImage::from_decoder(decoder).map_err(unreadable)?,
    };
    image.apply_orientation(orientation);
    Ok(RgbPixels {
        width: image.width() as usize,
        height: image.height() as usize,
        values: rgb_values(image),
    })
}

/// Whether the end marker follows the last scan. Decoders fill up what is missing without a word.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    match (last(0xda), last(0xd9)) {
        (Some(scan), Some(end)) => scan < end,
        _ => false,
    }
}

fn rgb_values(image: DynamicImage) -> Vec<u8> {
    match image {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        // Of 16 bits the upper half counts; only grey without transparency is cut off at the largest value instead.
        DynamicImage::ImageLuma16(pixels) => pixels
            .into_raw()
            .into_iter()
            .flat_map(|value| [u8::try_from(value).unwrap_or(u8::MAX); CHANNELS])
            .collect(),
        DynamicImage::ImageLumaA16(pixels) => pixels
            .into_raw()
            .chunks_exact(2)
            .flat_map(|pixel| [upper_half(pixel[0]); CHANNELS])
            .collect(),
        DynamicImage::ImageRgb16(pixels) => pixels.into_raw().into_iter().map(upper_half).collect(),
        DynamicImage::ImageRgba16(pixels) => pixels
            .into_raw()
            .chunks_exact(4)
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]].map(upper_half))
            .collect(),
        other => other.into_rgb8().into_raw(),
    }
}

fn upper_half(value: u16) -> u8 {
    value.to_be_bytes()[0]
}
