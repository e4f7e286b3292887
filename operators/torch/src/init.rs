//! Random weights for a new model, from our own generator: the same seed gives the same bytes everywhere that
//! logarithm and cosine round alike.

use std::path::Path;

use engine_core::error::ModelError;
use engine_core::seed;

use crate::config::{Family, ModelConfig};
use crate::layout::{self, Init};
use crate::philox;
use crate::save::{RawWeight, SmallFiles};

/// Writes a folder with random weights for the configuration in `config_folder`; returns the family and the number
/// of weights.
///
/// Each weight draws from a stream of its own, named after it, so that a model with one layer more shares the
/// others' values.
///
/// # Errors
/// When the configuration cannot be read or the folder cannot be written.
pub(crate) fn initialise(
    config_folder: &Path,
    seed: u64,
    folder: &Path,
) -> Result<(Family, u64), ModelError> {
    let config = ModelConfig::read(config_folder)?;
    let mut weights = Vec::new();
    let mut count = 0;
    for parameter in layout::parameters(&config) {
        for part in &parameter.parts {
            let mut values =
                vec![0.0_f32; usize::try_from(part.numel()).expect("sizes are positive")];
            match parameter.init {
                Init::Normal(scale) => {
                    philox::fill_normal(seed::derive(seed, &part.name), scale, &mut values);
                }
                Init::Ones => values.fill(1.0),
                Init::Zeros => {}
            }
            count += values.len() as u64;
            weights.push(RawWeight::from_floats(part, &values));
        }
    }
    SmallFiles::read(config_folder)?.write(&weights, folder)?;
    Ok((config.family, count))
}
