//! From the bytes of an image to the patches that a vision tower of the Qwen2-VL kind takes.

use std::path::Path;

use engine_core::error::ModelError;
use engine_core::policy::PatchedImage;
use serde::Deserialize;
use serde_json::Value;

use super::decode_image::decode;
use super::folder::file_fault;
use super::resize::{CHANNELS, RgbPixels, resize_bicubic};

/// Longer than this many times its width (or the reverse), a picture cannot be resized to the patch grid sensibly.
const MAX_ASPECT: f64 = 200.0;

/// Means and deviations that `Qwen2VLImageProcessor` uses when `preprocessor_config.json` names none.
const DEFAULT_MEAN: [f32; CHANNELS] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEFAULT_STD: [f32; CHANNELS] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Pixels after resizing, at least and at most, where the file names none.
const DEFAULT_PIXELS: [u64; 2] = [56 * 56, 28 * 28 * 1280];

/// The number of the bicubic filter among Pillow's.
const BICUBIC: u64 = 3;

/// What of `preprocessor_config.json` is used. Keys without effect here (class names and the like) are not read.
#[derive(Debug, Deserialize)]
struct PreprocessorFile {
    #[serde(default = "fourteen")]
    patch_size: usize,
    #[serde(default = "two")]
    merge_size: usize,
    #[serde(default = "two")]
    temporal_patch_size: usize,
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
    size: Option<SizeLimits>,
    image_mean: Option<[f32; CHANNELS]>,
    image_std: Option<[f32; CHANNELS]>,
    rescale_factor: Option<f64>,
    resample: Option<u64>,
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
}

/// The limits under the newer names or the older ones. Both count pixels, whatever they are called.
#[derive(Debug, Default, Deserialize)]
struct SizeLimits {
    #[serde(alias = "min_pixels")]
    shortest_edge: Option<u64>,
    #[serde(alias = "max_pixels")]
    longest_edge: Option<u64>,
}

fn fourteen() -> usize {
    14
}

fn two() -> usize {
    2
}

fn yes() -> bool {
    true
}

/// Resizes, normalises and cuts images as `Qwen2VLImageProcessor` does.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    patch: usize,
    merge: usize,
    temporal: usize,
    min_pixels: u64,
    max_pixels: u64,
    rescale: f64,
    mean: [f32; CHANNELS],
    std: [f32; CHANNELS],
}

impl ImageProcessor {
    /// Reads the content of `preprocessor_config.json`.
    pub(crate) fn from_json(path: &Path, content: Value) -> Result<Self, ModelError> {
        let fault = |message: String| file_fault(path, message);
        let file: PreprocessorFile =
            serde_json::from_value(content).map_err(|error| fault(error.to_string()))?;
        if !file.do_resize {
            return Err(fault("`do_resize: false` is not supported: patches need sides that the patch size divides".into()));
        }
        if file.patch_size == 0 || file.merge_size == 0 || file.temporal_patch_size == 0 {
            return Err(fault(
                "patch_size, merge_size and temporal_patch_size must be at least 1".into(),
            ));
        }
        if let Some(other) = file.resample.filter(|filter| *filter != BICUBIC) {
            return Err(fault(format!(
                "`resample` is {other}; only {BICUBIC} (bicubic) is supported"
            )));
        }
        let size = file.size.unwrap_or_default();
        let [least, most] = DEFAULT_PIXELS;
        let min_pixels = file.min_pixels.or(size.shortest_edge).unwrap_or(least);
        let max_pixels = file.max_pixels.or(size.longest_edge).unwrap_or(most);
        if min_pixels > max_pixels {
            return Err(fault(format!(
                "at least {min_pixels} pixels and at most {max_pixels}: no image fits"
            )));
        }
        let (mean, std) = if file.do_normalize {
            (
                file.image_mean.unwrap_or(DEFAULT_MEAN),
                file.image_std.unwrap_or(DEFAULT_STD),
            )
        } else {
            ([0.0; CHANNELS], [1.0; CHANNELS])
        };
        Ok(Self {
            patch: file.patch_size,
            merge: file.merge_size,
            temporal: file.temporal_patch_size,
            min_pixels,
            max_pixels,
            rescale: if file.do_rescale {
                file.rescale_factor.unwrap_or(1.0 / 255.0)
            } else {
                1.0
            },
            mean,
            std,
        })
    }

    /// Decodes and preprocesses an image file.
    ///
    /// # Errors
    /// When the bytes are no image that can be read, or its sides are too unequal; a lower-case fragment.
    pub fn process(&self, bytes: &[u8]) -> Result<PatchedImage, String> {
        let pixels = decode(bytes)?;
        let (height, width) = self.target_size(pixels.height, pixels.width)?;
        Ok(self.cut(&resize_bicubic(pixels, width, height)))
    }

    /// Placeholder tokens of an image with this grid.
    #[must_use]
    pub fn placeholders(&self, grid_thw: [usize; 3]) -> usize {
        grid_thw.iter().product::<usize>() / (self.merge * self.merge)
    }

    /// Height and width after resizing: multiples of the merged patch, area within the limits, aspect kept roughly.
    pub(crate) fn target_size(
        &self,
        height: usize,
        width: usize,
    ) -> Result<(usize, usize), String> {
        let (h, w) = (height as f64, width as f64);
        if h.max(w) > MAX_ASPECT * h.min(w) {
            return Err(format!(
                "{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other"
            ));
        }
        let factor = (self.patch * self.merge) as f64;
        let fit = |length: f64| (length / factor).round_ties_even() * factor;
        let (mut new_h, mut new_w) = (fit(h), fit(w));
        if new_h * new_w > self.max_pixels as f64 {
            let shrink = (h * w / self.max_pixels as f64).sqrt();
            let floor = |length: f64| ((length / shrink / factor).floor() * factor).max(factor);
            (new_h, new_w) = (floor(h), floor(w));
        } else if new_h * new_w < self.min_pixels as f64 {
            let grow = (self.min_pixels as f64 / (h * w)).sqrt();
            let ceil = |length: f64| (length * grow / factor).ceil() * factor;
            (new_h, new_w) = (ceil(h), ceil(w));
        }
        Ok((new_h as usize, new_w as usize))
    }

    /// Normalises and cuts. Patches follow merged cells row by row, inside a cell row by row; a patch is laid out as
    /// channel, time, row, column. A still image fills every frame of a temporal patch.
    pub(crate) fn cut(&self, image: &RgbPixels) -> PatchedImage {
        let (rows, columns) = (image.height / self.patch, image.width / self.patch);
        let mut patches = Vec::with_capacity(image.values.len() * self.temporal);
        for cell_row in (0..rows).step_by(self.merge) {
            for cell_column in (0..columns).step_by(self.merge) {
                for row in cell_row..cell_row + self.merge {
                    for column in cell_column..cell_column + self.merge {
                        self.push_patch(image, row * self.patch, column * self.patch, &mut patches);
                    }
                }
            }
        }
        PatchedImage {
            patches,
            grid_thw: [1, rows, columns],
        }
    }

    fn push_patch(&self, image: &RgbPixels, top: usize, left: usize, patches: &mut Vec<f32>) {
        for channel in 0..CHANNELS {
            for _frame in 0..self.temporal {
                for y in top..top + self.patch {
                    let start = (y * image.width + left) * CHANNELS + channel;
                    let line = image.values[start..]
                        .iter()
                        .step_by(CHANNELS)
                        .take(self.patch);
                    patches.extend(line.map(|value| self.normalise(*value, channel)));
                }
            }
        }
    }

    fn normalise(&self, value: u8, channel: usize) -> f32 {
        // In this order and precision the result equals NumPy's.
        let rescaled = (f64::from(value) * self.rescale) as f32;
        (rescaled - self.mean[channel]) / self.std[channel]
    }
}
