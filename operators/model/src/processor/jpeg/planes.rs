//! From coefficients to samples, from samples to pixels.

use super::{BLOCK, Component};

/// What the channels mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    /// One channel.
    Grey,
    /// Brightness and two differences of colour.
    YCbCr,
    /// Red, green and blue.
    Rgb,
}

/// Samples of a channel, row by row.
struct Plane {
    width: usize,
    height: usize,
    values: Vec<u8>,
}

impl Plane {
    fn row(&self, row: usize) -> &[u8] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

/// The samples of a channel in the size of the picture.
pub(super) fn full_size(
    component: Component,
    most_h: usize,
    most_v: usize,
    width: usize,
    height: usize,
) -> Option<Vec<u8>> {
    let (h, v) = (component.h, component.v);
    let plane = samples(&component)?;
    let across = most_h.is_multiple_of(h).then_some(most_h / h)?;
    let down = most_v.is_multiple_of(v).then_some(most_v / v)?;
    let wide = match (across, down) {
        (1, 1) => plane,
        (2, 1) if plane.width > 2 => widen(&plane),
        (2, 2) if plane.width > 2 => widen_and_heighten(&plane),
        (1, 2) => heighten(&plane),
        _ => repeat(&plane, across, down),
    };
    let mut values = Vec::with_capacity(width * height);
    for row in 0..height {
        values.extend_from_slice(&wide.row(row)[..width]);
    }
    Some(values)
}

fn samples(component: &Component) -> Option<Plane> {
    let steps = component.steps.as_ref()?;
    let stride = component.block_columns * 8;
    let mut all = vec![0; stride * component.block_rows * 8];
    for (index, block) in component.coefficients.chunks_exact(BLOCK).enumerate() {
        let (column, row) = (
            index % component.block_columns,
            index / component.block_columns,
        );
        let square = inverse_transform(block, steps);
        for (line, values) in square.chunks_exact(8).enumerate() {
            let start = (row * 8 + line) * stride + column * 8;
            all[start..start + 8].copy_from_slice(values);
        }
    }
    let mut values = Vec::with_capacity(component.width * component.height);
    for row in all.chunks_exact(stride).take(component.height) {
        values.extend_from_slice(&row[..component.width]);
    }
    Some(Plane {
        width: component.width,
        height: component.height,
        values,
    })
}

/// Fraction bits of the constants, and those kept between the two passes.
const CONSTANT_BITS: u32 = 13;
const PASS_BITS: u32 = 2;

/// The inverse cosine transform of Loeffler, Ligtenberg and Moschytz (1989) in integers, columns before rows.
fn inverse_transform(block: &[i16], steps: &[u16; BLOCK]) -> [u8; BLOCK] {
    if block[1..].iter().all(|coefficient| *coefficient == 0) {
        // Both passes come down to this.
        let level = i32::from(block[0]).wrapping_mul(i32::from(steps[0]));
        let level = level.wrapping_shl(PASS_BITS).wrapping_add(16) >> 5;
        return [byte(level.wrapping_add(128)); BLOCK];
    }
    let mut work = [0_i32; BLOCK];
    for (value, (coefficient, step)) in work.iter_mut().zip(block.iter().zip(steps)) {
        *value = i32::from(*coefficient).wrapping_mul(i32::from(*step));
    }
    for column in 0..8 {
        let line = std::array::from_fn(|row| work[row * 8 + column]);
        let line = transform_line(line, CONSTANT_BITS - PASS_BITS);
        for (row, value) in line.into_iter().enumerate() {
            work[row * 8 + column] = value;
        }
    }
    let mut out = [0; BLOCK];
    for row in 0..8 {
        let line = std::array::from_fn(|column| work[row * 8 + column]);
        let line = transform_line(line, CONSTANT_BITS + PASS_BITS + 3);
        for (column, value) in line.into_iter().enumerate() {
            out[row * 8 + column] = byte(value.wrapping_add(128));
        }
    }
    out
}

fn transform_line(x: [i32; 8], shift: u32) -> [i32; 8] {
    let times = i32::wrapping_mul;
    let sum = i32::wrapping_add;
    let less = i32::wrapping_sub;
    let z1 = times(sum(x[2], x[6]), 4433);
    let even2 = less(z1, times(x[6], 15137));
    let even3 = sum(z1, times(x[2], 6270));
    let even0 = sum(x[0], x[4]).wrapping_shl(CONSTANT_BITS);
    let even1 = less(x[0], x[4]).wrapping_shl(CONSTANT_BITS);
    let even = [
        sum(even0, even3),
        sum(even1, even2),
        less(even1, even2),
        less(even0, even3),
    ];
    let z5 = times(sum(sum(x[7], x[3]), sum(x[5], x[1])), 9633);
    let z1 = times(sum(x[7], x[1]), -7373);
    let z2 = times(sum(x[5], x[3]), -20995);
    let z3 = sum(times(sum(x[7], x[3]), -16069), z5);
    let z4 = sum(times(sum(x[5], x[1]), -3196), z5);
    let odd = [
        sum(times(x[1], 12299), sum(z1, z4)),
        sum(times(x[3], 25172), sum(z2, z3)),
        sum(times(x[5], 16819), sum(z2, z4)),
        sum(times(x[7], 2446), sum(z1, z3)),
    ];
    let round = |value: i32| sum(value, 1 << (shift - 1)) >> shift;
    std::array::from_fn(|place| match place {
        0..4 => round(sum(even[place], odd[place])),
        _ => round(less(even[7 - place], odd[7 - place])),
    })
}

fn byte(value: i32) -> u8 {
    u8::try_from(value.clamp(0, 255)).expect("the value was clamped to 8 bits")
}

/// Twice as many values: each is three quarters of the nearer and a quarter of the further one, in units of `1 << shift`. The
/// halves that rounding adds differ from left to right.
fn widen_line(line: &[i32], shift: u32, halves: [i32; 2], out: &mut Vec<u8>) {
    let (first, last) = (line[0], line[line.len() - 1]);
    let left = |near: i32, far: i32| byte((3 * near + far + halves[0]) >> shift);
    let right = |near: i32, far: i32| byte((3 * near + far + halves[1]) >> shift);
    out.extend([left(first, first), right(first, line[1])]);
    for three in line.windows(3) {
        out.extend([left(three[1], three[0]), right(three[1], three[2])]);
    }
    out.extend([left(last, line[line.len() - 2]), right(last, last)]);
}

fn widen(plane: &Plane) -> Plane {
    let mut values = Vec::with_capacity(plane.values.len() * 2);
    for row in 0..plane.height {
        let line = plane.row(row).iter().map(|value| i32::from(*value));
        widen_line(&line.collect::<Vec<i32>>(), 2, [1, 2], &mut values);
    }
    Plane {
        width: plane.width * 2,
        height: plane.height,
        values,
    }
}

/// The row above for the upper of two rows, the row below for the lower one; at the border the row itself.
fn neighbour(plane: &Plane, row: usize, lower: bool) -> &[u8] {
    plane.row(if lower {
        (row + 1).min(plane.height - 1)
    } else {
        row.saturating_sub(1)
    })
}

/// Three parts of a row and one of its neighbour.
fn blended(plane: &Plane, row: usize, lower: bool) -> impl Iterator<Item = i32> {
    let pairs = plane.row(row).iter().zip(neighbour(plane, row, lower));
    pairs.map(|(near, far)| 3 * i32::from(*near) + i32::from(*far))
}

fn heighten(plane: &Plane) -> Plane {
    let mut values = Vec::with_capacity(plane.values.len() * 2);
    for row in 0..plane.height {
        for (lower, half) in [(false, 1), (true, 2)] {
            values.extend(blended(plane, row, lower).map(|sum| byte((sum + half) >> 2)));
        }
    }
    Plane {
        width: plane.width,
        height: plane.height * 2,
        values,
    }
}

fn widen_and_heighten(plane: &Plane) -> Plane {
    let mut values = Vec::with_capacity(plane.values.len() * 4);
    for row in 0..plane.height {
        for lower in [false, true] {
            let line: Vec<i32> = blended(plane, row, lower).collect();
            widen_line(&line, 4, [8, 7], &mut values);
        }
    }
    Plane {
        width: plane.width * 2,
        height: plane.height * 2,
        values,
    }
}

fn repeat(plane: &Plane, across: usize, down: usize) -> Plane {
    let mut values = Vec::with_capacity(plane.values.len() * across * down);
    for row in 0..plane.height {
        for _ in 0..down {
            let line = plane.row(row).iter();
            values.extend(line.flat_map(|value| std::iter::repeat_n(*value, across)));
        }
    }
    Plane {
        width: plane.width * across,
        height: plane.height * down,
        values,
    }
}

/// Pixels of channels of equal size.
pub(super) fn rgb(planes: &[Vec<u8>], colours: Colours) -> Vec<u8> {
    let mut values = vec![0; planes[0].len() * 3];
    let pixels = values.chunks_exact_mut(3);
    match (colours, planes) {
        (Colours::YCbCr, [y, cb, cr]) => {
            for (((pixel, y), cb), cr) in pixels.zip(y).zip(cb).zip(cr) {
                pixel.copy_from_slice(&from_ycbcr(*y, *cb, *cr));
            }
        }
        (Colours::Rgb, [red, green, blue]) => {
            for (((pixel, red), green), blue) in pixels.zip(red).zip(green).zip(blue) {
                pixel.copy_from_slice(&[*red, *green, *blue]);
            }
        }
        _ => {
            for (pixel, value) in pixels.zip(&planes[0]) {
                pixel.fill(*value);
            }
        }
    }
    values
}

/// ITU-R BT.601 with 16 fraction bits.
fn from_ycbcr(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let half = 1 << 15;
    [
        byte(y + ((91_881 * cr + half) >> 16)),
        byte(y + ((half - 22_554 * cb - 46_802 * cr) >> 16)),
        byte(y + ((116_130 * cb + half) >> 16)),
    ]
}
