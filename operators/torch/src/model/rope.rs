//! Rotary position embedding: the language model's three axes and the tower's two.
//!
//! Shapes: `n` tokens, `h` heads, `d` head width.

use tch::{Device, Kind, Tensor};

use crate::config::{Llama3Scaling, RopeAxes, TextConfig, VisionConfig};
use crate::device::upload;

/// Cosines and sines for a list of tokens; the sines carry the sign of the rotation.
#[derive(Debug)]
pub(crate) struct Rope {
    cos_n1d: Tensor,
    sin_n1d: Tensor,
    /// Cosine and sine of each angle in 32 bits, `[n, d / 2, 2]`, for the kernels of a GPU.
    table: Option<Tensor>,
}

impl Rope {
    /// Tables from one angle for each token and half of the head width.
    ///
    /// # Shapes
    /// - `angles`: `[n, d / 2]`
    fn from_angles(angles: &Tensor, kind: Kind) -> Self {
        let angles = angles.unsqueeze(1);
        let (cos, sin) = (angles.cos(), angles.sin());
        let has_kernels = angles.device().is_cuda() && kind == Kind::BFloat16;
        Self {
            table: has_kernels.then(|| Tensor::stack(&[&cos, &sin], -1).squeeze_dim(1)),
            cos_n1d: Tensor::cat(&[&cos, &cos], -1).to_kind(kind),
            // Turning (a, b) by 90 degrees gives (-b, a): with the sign here, a roll does the rest.
            sin_n1d: Tensor::cat(&[&sin.neg(), &sin], -1).to_kind(kind),
        }
    }

    /// Rotates every head: `x cos + turned(x) sin` with the halves of the head as coordinates.
    ///
    /// # Shapes
    /// - `x_nhd`: `[n, h, d]`, and so is the result
    ///
    /// # Types and device
    /// Computed in the tables' type, returned in that of `x_nhd`.
    pub(crate) fn apply(&self, x_nhd: &Tensor) -> Tensor {
        let kind = x_nhd.kind();
        let x = x_nhd.to_kind(self.cos_n1d.kind());
        let half = x.size()[2] / 2;
        (&x * &self.cos_n1d)
            .addcmul(&x.roll([half], [-1]), &self.sin_n1d)
            .to_kind(kind)
    }

    /// The gradient of what was rotated for that of what came out: the rotation back.
    ///
    /// # Shapes
    /// - `gradient_nhd`: `[n, h, d]`, and so is the result
    pub(crate) fn undo(&self, gradient_nhd: &Tensor) -> Tensor {
        let kind = gradient_nhd.kind();
        let gradient = gradient_nhd.to_kind(self.cos_n1d.kind());
        let half = gradient.size()[2] / 2;
        // A roll by half of the axis undoes itself.
        (&gradient * &self.cos_n1d + (gradient * &self.sin_n1d).roll([half], [-1])).to_kind(kind)
    }

    /// The tables of some of the tokens, in the order of `index_m`.
    pub(crate) fn select(&self, index_m: &Tensor) -> Self {
        Self {
            cos_n1d: self.cos_n1d.index_select(0, index_m),
            sin_n1d: self.sin_n1d.index_select(0, index_m),
            table: (self.table.as_ref()).map(|table| table.index_select(0, index_m)),
        }
    }

    /// The table for kernels.
    pub(crate) fn table(&self) -> &Tensor {
        self.table
            .as_ref()
            .expect("there are kernels where there is a table")
    }
}

/// The rotary frequencies of a language model, slowest last.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies {
    /// Angle for each position, `[d / 2]`; scaling is included.
    pub(crate) inverse: Vec<f32>,
    /// The axis whose position each frequency is multiplied with: 0 time, 1 height, 2 width. All 0 for text models.
    pub(crate) axes: Vec<usize>,
}

/// The rotary frequencies of a language model.
pub(crate) fn language_frequencies(config: &TextConfig) -> Frequencies {
    let rope = &config.rope;
    let mut inverse = inverse_frequencies(config.head_dim, rope.theta);
    if let Some(scaling) = &rope.scaling {
        for inverse in &mut inverse {
            *inverse = stretched(scaling, *inverse);
        }
    }
    let axes = (0..config.head_dim / 2).map(|index| match rope.axes {
        RopeAxes::One => 0,
        RopeAxes::Blocks([time, height, _]) => {
            usize::from(index >= time) + usize::from(index >= time + height)
        }
        RopeAxes::Interleaved([_, height, width]) => match index % 3 {
            1 if index < 3 * height => 1,
            2 if index < 3 * width => 2,
            _ => 0,
        },
    });
    Frequencies {
        inverse,
        axes: axes.collect(),
    }
}

/// Rope scaling `llama3`: wavelengths beyond the original context are stretched, short ones kept, and those between blended.
fn stretched(scaling: &Llama3Scaling, inverse: f32) -> f32 {
    let wavelength = std::f64::consts::TAU / f64::from(inverse);
    let turns = scaling.original_positions / wavelength;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    (f64::from(inverse) * (kept + (1.0 - kept) / scaling.factor)) as f32
}

/// Tables of the language model for tokens at `(time, height, width)` positions.
pub(crate) fn language_rope(
    config: &TextConfig,
    positions: &[[i64; 3]],
    kind: Kind,
    device: Device,
) -> Rope {
    let angles = language_angles(&language_frequencies(config), positions, device);
    Rope::from_angles(&angles, kind)
}

/// Each position times each frequency in 32 bits, `[n, d / 2]`; multiplied on the device, which has many of them sooner than the host.
fn language_angles(frequencies: &Frequencies, positions: &[[i64; 3]], device: Device) -> Tensor {
    let Frequencies { inverse, axes } = frequencies;
    let inverse = upload(inverse, device);
    let is_text = |position: &[i64; 3]| position.iter().all(|place| *place == position[0]);
    if axes.iter().all(|axis| *axis == 0) || positions.iter().all(is_text) {
        let places: Vec<f32> = positions.iter().map(|place| place[0] as f32).collect();
        return upload(&places, device).unsqueeze(1) * inverse;
    }
    let places: Vec<f32> = (positions.iter().flatten())
        .map(|place| *place as f32)
        .collect();
    let axes: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
    upload(&places, device)
        .view([-1, 3])
        .index_select(1, &upload(&axes, device))
        * inverse
}

/// Tables of the tower for patches at `(row, column)` of their image. Angles are kept in 32 bits at least.
pub(crate) fn vision_rope(
    config: &VisionConfig,
    positions: &[[i64; 2]],
    kind: Kind,
    device: Device,
) -> Rope {
    let head_dim = config.head_dim();
    let inverse = inverse_frequencies(head_dim / 2, config.rope_theta);
    let angles: Vec<f32> = positions
        .iter()
        .flat_map(|position| {
            position
                .iter()
                .flat_map(|place| inverse.iter().map(|inverse| *place as f32 * inverse))
        })
        .collect();
    let kind = if kind == Kind::Double {
        kind
    } else {
        Kind::Float
    };
    let angles = upload(&angles, device).view([-1, head_dim / 2]);
    Rope::from_angles(&angles, kind)
}

/// `theta^(-2 i / dim)` for `i` below `dim / 2`.
fn inverse_frequencies(dim: i64, theta: f64) -> Vec<f32> {
    (0..dim / 2)
        .map(|index| 1.0 / (theta as f32).powf(2.0 * index as f32 / dim as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_the_products_of_position_and_frequency_bit_for_bit() {
        let frequencies = |axes: Vec<usize>| Frequencies {
            inverse: inverse_frequencies(2 * axes.len() as i64, 1e6),
            axes,
        };
        let text: Vec<[i64; 3]> = (0..20_011).map(|place| [3 * place; 3]).collect();
        let image: Vec<[i64; 3]> = (0..5_003)
            .map(|place| [place, place + 7 * (place % 31), place + place / 13])
            .collect();
        let one_axis = frequencies(vec![0; 64]);
        let three_axes = frequencies((0..64).map(|index| index % 3).collect());
        let cases = [
            (&one_axis, &text),
            (&one_axis, &image),
            (&three_axes, &text),
            (&three_axes, &image),
        ];
        for (frequencies, positions) in cases {
            let found = language_angles(frequencies, positions, Device::Cpu);
            let found = Vec::<Vec<f32>>::try_from(found).unwrap();
            assert_eq!(found.len(), positions.len());
            for (row, position) in found.iter().zip(positions) {
                let pairs = frequencies.axes.iter().zip(&frequencies.inverse);
                for (angle, (axis, inverse)) in row.iter().zip(pairs) {
                    let expected = position[*axis] as f32 * inverse;
                    assert_eq!(angle.to_bits(), expected.to_bits());
                }
            }
        }
    }
}
