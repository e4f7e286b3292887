//! Adapters as peft writes and reads them.

use std::collections::HashMap;
use std::path::Path;

use engine_core::error::ModelError;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::Lora;
use super::targets::module_name;
use crate::parameters::Parameters;
use crate::weights::file_error;

const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const CONFIG_FILE: &str = "adapter_config.json";
/// What peft puts before the names of the model's modules.
const PREFIX: &str = "base_model.model.";

/// What peft has to know of the adapters; it has defaults for the rest.
#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the keys of a file")]
struct Config<'a> {
    peft_type: &'static str,
    task_type: &'static str,
    base_model_name_or_path: Option<&'a str>,
    r: usize,
    lora_alpha: f64,
    lora_dropout: f64,
    target_modules: &'a [String],
    bias: &'static str,
    fan_in_fan_out: bool,
    init_lora_weights: bool,
    use_rslora: bool,
    use_dora: bool,
    modules_to_save: Option<&'a [String]>,
    inference_mode: bool,
}

/// Writes `adapter_model.safetensors`, in 32 bits, and `adapter_config.json`.
///
/// # Errors
/// [`ModelError::File`] with the file that could not be written.
pub(crate) fn save(folder: &Path, lora: &Lora, weights: &Parameters) -> Result<(), ModelError> {
    std::fs::create_dir_all(folder).map_err(|error| file_error(folder, &error))?;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for place in lora.places() {
        let part = &weights.list[place].parts[0];
        let name = format!("{PREFIX}{}", module_name(&part.name, lora.nested));
        let shape = part.shape.iter().map(|size| size.unsigned_abs() as usize);
        tensors.push((name, shape.collect(), bytes(&weights.tensors[place])));
    }
    let path = folder.join(WEIGHTS_FILE);
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
                .map_err(|error| file_error(&path, &error))?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(views, Some(metadata), &path).map_err(|error| file_error(&path, &error))?;

    let options = lora.options();
    let config = Config {
        peft_type: "LORA",
        task_type: "CAUSAL_LM",
        base_model_name_or_path: None,
        r: options.rank,
        lora_alpha: options.alpha,
        lora_dropout: 0.0,
        target_modules: &lora.target_modules,
        bias: "none",
        fan_in_fan_out: false,
        init_lora_weights: true,
        use_rslora: false,
        use_dora: false,
        modules_to_save: None,
        inference_mode: true,
    };
    let path = folder.join(CONFIG_FILE);
    let mut text = serde_json::to_vec_pretty(&config).map_err(|error| file_error(&path, &error))?;
    text.push(b'\n');
    std::fs::write(&path, text).map_err(|error| file_error(&path, &error))
}

/// The values in 32 bits.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float);
    let count = flat.numel();
    let mut bytes = vec![0; 4 * count];
    flat.contiguous()
        .flatten(0, -1)
        .copy_data_u8(&mut bytes, count);
    bytes
}
