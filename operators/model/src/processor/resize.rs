//! Antialiased bicubic resizing in fixed-point arithmetic, bit for bit as Pillow's `Image.resize` does it for 8-bit images.
//!
//! Which of the two passes comes first matters for the rounding and clipping between them. The choice is that of Pillow 13;
//! earlier versions always resize rows before columns.

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
    let rows = |image: RgbPixels| {
        if image.width == width {
            image
        } else {
            resize_rows(&image, width)
        }
    };
    let columns = |image: RgbPixels| {
        if image.height == height {
            image
        } else {
            resize_columns(&image, height)
        }
    };
    // What goes first is what takes the most away, a row counting half.
    let lost_rows = image.height.saturating_sub(height);
    let lost_columns = image.width.saturating_sub(width);
    if lost_rows > 2 * lost_columns {
        rows(columns(image))
    } else {
        columns(rows(image))
    }
}

fn resize_rows(image: &RgbPixels, width: usize) -> RgbPixels {
    let taps = filter_taps(image.width, width);
    let mut values = Vec::with_capacity(image.height * width * CHANNELS);
    for row in image.values.chunks_exact(image.width * CHANNELS) {
        for tap in &taps {
            let mut sums = [HALF; CHANNELS];
            let pixels = row[tap.start * CHANNELS..].chunks_exact(CHANNELS);
            for (pixel, weight) in pixels.zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            values.extend(sums.map(round));
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
    let mut sums = vec![HALF; stride];
    for tap in filter_taps(image.height, height) {
        sums.fill(HALF);
        let rows = image.values[tap.start * stride..].chunks_exact(stride);
        for (row, weight) in rows.zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        values.extend(sums.iter().copied().map(round));
    }
    RgbPixels {
        width: image.width,
        height,
        values,
    }
}

/// One half, in fixed point.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// A sum that began at one half, rounded and cut to 8 bits.
fn round(sum: i32) -> u8 {
    u8::try_from((sum >> FRACTION_BITS).clamp(0, 255)).expect("the value was clamped to 8 bits")
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
