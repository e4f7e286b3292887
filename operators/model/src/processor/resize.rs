//! Antialiased bicubic resizing in fixed-point arithmetic, bit for bit as Pillow's `Image.resize` does it for 8-bit images.
//!
//! Rows are resized before columns. Pillow before version 13 always does so; later versions choose the order by size,
//! which differs in the rounding and clipping between the two passes.

/// Channels of an image: red, green, blue.
pub(crate) const CHANNELS: usize = 3;

/// Fraction bits of a weight: 32 bits less 8 of the pixel and 2 for the overshoot of the filter.
const FRACTION_BITS: u32 = 32 - 8 - 2;

/// Half-width of the cubic filter at scale 1, in pixels.
const SUPPORT: f64 = 2.0;

/// Sharpness of the cubic filter; Pillow's value.
const CUBIC_A: f64 = -0.5;

/// 8-bit red, green and blue, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RgbPixels {
    /// Width in pixels.
    pub(crate) width: usize,
    /// Height in pixels.
    pub(crate) height: usize,
    /// `height * width * 3` values.
    pub(crate) values: Vec<u8>,
}

/// Weights of one output pixel: the first input pixel and a weight for it and its successors.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

/// Resizes to `width` by `height`; an image that has this size already is returned as it is.
pub(crate) fn resize_bicubic(image: RgbPixels, width: usize, height: usize) -> RgbPixels {
    let across = if image.width == width {
        image
    } else {
        resize_rows(&image, width)
    };
    if across.height == height {
        across
    } else {
        resize_columns(&across, height)
    }
}

fn resize_rows(image: &RgbPixels, width: usize) -> RgbPixels {
    let taps = filter_taps(image.width, width);
    let mut values = Vec::with_capacity(image.height * width * CHANNELS);
    for row in image.values.chunks_exact(image.width * CHANNELS) {
        for tap in &taps {
            for channel in 0..CHANNELS {
                values.push(tap.apply(|index| row[index * CHANNELS + channel]));
            }
        }
    }
    RgbPixels {
        width,
        height: image.height,
        values,
    }
}

fn resize_columns(image: &RgbPixels, height: usize) -> RgbPixels {
    let stride = image.width * CHANNELS;
    let mut values = Vec::with_capacity(height * stride);
    for tap in filter_taps(image.height, height) {
        for column in 0..stride {
            values.push(tap.apply(|index| image.values[index * stride + column]));
        }
    }
    RgbPixels {
        width: image.width,
        height,
        values,
    }
}

impl Taps {
    /// Weighted sum of the input pixels, rounded and cut to 8 bits.
    fn apply(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let mut sum: i32 = 1 << (FRACTION_BITS - 1);
        for (offset, weight) in self.weights.iter().enumerate() {
            sum += i32::from(pixel(self.start + offset)) * weight;
        }
        u8::try_from((sum >> FRACTION_BITS).clamp(0, 255)).expect("the value was clamped to 8 bits")
    }
}

/// Taps of every output pixel. When shrinking, the filter widens with the scale, which is the antialiasing.
fn filter_taps(input: usize, output: usize) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let reach = SUPPORT * stretch;
    (0..output)
        .map(|index| {
            let center = (index as f64 + 0.5) * scale;
            let start = (center - reach + 0.5).max(0.0) as usize;
            let end = ((center + reach + 0.5) as usize).min(input);
            let raw: Vec<f64> = (start..end)
                .map(|position| cubic((position as f64 - center + 0.5) / stretch))
                .collect();
            let total: f64 = raw.iter().sum();
            let weights = raw.iter().map(|weight| {
                fixed_point(if total == 0.0 {
                    *weight
                } else {
                    weight / total
                })
            });
            Taps {
                start,
                weights: weights.collect(),
            }
        })
        .collect()
}

fn cubic(distance: f64) -> f64 {
    let x = distance.abs();
    if x < 1.0 {
        ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC_A
    } else {
        0.0
    }
}

/// Rounds half away from zero.
fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1 << FRACTION_BITS)).round() as i32
}
