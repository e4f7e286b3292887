//! The weights in memory: views of a few flat buffers.
//!
//! Weights of one kind (trained or frozen, matrix or vector, learning rate) share a buffer up to a size limit. The optimizer
//! then works on a handful of long vectors instead of hundreds of small tensors.

use std::collections::BTreeMap;
use std::path::Path;

use engine_core::error::ModelError;
use engine_core::policy::TrainOptions;
use tch::{Device, Kind, Tensor};

use crate::groups::{self, Group};
use crate::layout::Parameter;
use crate::lora::{Adapter, Lora};
use crate::weights::WeightFiles;

/// Weights start at multiples of this many elements, so that vector loads are aligned.
const ALIGNMENT: i64 = 16;

/// A flat buffer and the weights that lie in it.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// All values, padding included.
    pub(crate) flat: Tensor,
    /// Indices into [`Parameters::list`], in the order of the buffer.
    pub(crate) members: Vec<usize>,
    /// Whether the weights are trained.
    pub(crate) trained: bool,
    /// Whether they are matrices.
    pub(crate) matrices: bool,
    /// Factor of the learning rate.
    pub(crate) factor: f64,
}

/// All weights of a model, and of its adapters if it has any.
#[derive(Debug)]
pub(crate) struct Parameters {
    /// The model's own weights, then those of adapters.
    pub(crate) list: Vec<Parameter>,
    /// One tensor for each of `list`; trained ones require gradients. An adapted weight has its adapter in it.
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) buckets: Vec<Bucket>,
    /// Type of the model's own weights.
    pub(crate) kind: Kind,
    pub(crate) lora: Option<Lora>,
    /// How many of `list` are the model's own.
    own: usize,
    index: BTreeMap<String, usize>,
}

/// Elements that a weight takes in its buffer.
pub(crate) fn padded(numel: i64) -> i64 {
    (numel + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// Type of gradients, masters and adapters of weights of some type.
pub(crate) fn wide_kind(kind: Kind) -> Kind {
    if kind == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    }
}

impl Parameters {
    /// Reads the weights of a folder. `training` is `None` for a model that is not trained.
    ///
    /// # Errors
    /// When a weight is missing, extra or misshaped, or the options of the training do not fit the weights.
    pub(crate) fn load(
        mut list: Vec<Parameter>,
        folder: &Path,
        training: Option<&TrainOptions>,
        kind: Kind,
        device: Device,
    ) -> Result<Self, ModelError> {
        let files = WeightFiles::open(folder)?;
        files.check(&list)?;
        let own = list.len();
        let mut lora = None;
        let mut trained = vec![false; own];
        let mut factors = vec![1.0; own];
        if let Some(options) = training {
            groups::check_freeze(&list, &options.freeze)?;
            lora = Lora::new(&mut list, options)?;
            if lora.is_none() {
                for (trained, parameter) in trained.iter_mut().zip(&list) {
                    *trained = groups::is_trained(parameter, &options.freeze)?;
                }
            }
            trained.resize(list.len(), true);
            factors = groups::factors(&list, &trained, options)?;
        }
        let mut tensors: Vec<Option<Tensor>> = list.iter().map(|_| None).collect();
        let mut buckets = Vec::new();
        for group in groups::plan(&list, &trained, &factors) {
            // With adapters nothing else is trained.
            let is_adapters = group.trained && lora.is_some();
            let kind = if is_adapters { wide_kind(kind) } else { kind };
            let mut flat = Tensor::zeros([group.length(&list)], (kind, Device::Cpu));
            fill(&mut flat, &group, &list, &files, lora.as_ref())?;
            let flat = flat.to_device(device);
            for (member, tensor) in views(&flat, &group.members, &list) {
                tensors[member] = Some(tensor.set_requires_grad(group.trained));
            }
            buckets.push(Bucket {
                flat,
                members: group.members,
                trained: group.trained,
                matrices: group.matrices,
                factor: group.factor,
            });
        }
        let tensors: Vec<Tensor> = tensors
            .into_iter()
            .map(|tensor| tensor.expect("the plan covers every weight"))
            .collect();
        if let Some(lora) = &mut lora {
            lora.keep_bases(&tensors);
        }
        let index = list
            .iter()
            .enumerate()
            .map(|(index, parameter)| (parameter.name.clone(), index))
            .collect();
        Ok(Self {
            list,
            tensors,
            buckets,
            kind,
            lora,
            own,
            index,
        })
    }

    /// The same weights for another thread: tensors can be sent, but not shared by reference.
    pub(crate) fn share(&self) -> Self {
        self.with(self.tensors.iter().map(Tensor::shallow_clone).collect())
    }

    /// The same weights with other values, which the optimizer does not know: for reading alone.
    pub(crate) fn with(&self, tensors: Vec<Tensor>) -> Self {
        let bucket = |bucket: &Bucket| Bucket {
            flat: bucket.flat.shallow_clone(),
            members: bucket.members.clone(),
            ..*bucket
        };
        Self {
            list: self.list.clone(),
            tensors,
            buckets: self.buckets.iter().map(bucket).collect(),
            lora: self.lora.as_ref().map(Lora::share),
            index: self.index.clone(),
            ..*self
        }
    }

    /// The weight with this name in memory.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.tensors[self.place(name)].shallow_clone()
    }

    /// The adapter of the weight with this name in memory, if it has one.
    pub(crate) fn adapter(&self, name: &str) -> Option<Adapter> {
        let lora = self.lora.as_ref()?;
        lora.adapter(self.place(name), &self.tensors)
    }

    fn place(&self, name: &str) -> usize {
        *self
            .index
            .get(name)
            .expect("the layout and the model name the same weights")
    }

    /// The model's own weights, without adapters.
    pub(crate) fn own(&self) -> impl Iterator<Item = (&Parameter, &Tensor)> {
        self.list.iter().zip(&self.tensors).take(self.own)
    }

    /// Number of the model's own weights.
    pub(crate) fn count(&self) -> u64 {
        self.own()
            .map(|(parameter, _)| parameter.numel().unsigned_abs())
            .sum()
    }

    /// Indices of the trained weights, in the order of the buffers.
    pub(crate) fn trained(&self) -> Vec<usize> {
        self.trained_buckets()
            .flat_map(|bucket| bucket.members.iter().copied())
            .collect()
    }

    pub(crate) fn trained_buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.buckets.iter().filter(|bucket| bucket.trained)
    }

    /// Puts adapters that have changed into the weights that the model computes with.
    pub(crate) fn merge_adapters(&self) {
        if let Some(lora) = &self.lora {
            lora.merge_into(&self.tensors);
        }
    }
}

/// Copies the values of a group into its buffer.
fn fill(
    flat: &mut Tensor,
    group: &Group,
    list: &[Parameter],
    files: &WeightFiles,
    lora: Option<&Lora>,
) -> Result<(), ModelError> {
    let mut offset = 0;
    for member in &group.members {
        let mut start = offset;
        for part in &list[*member].parts {
            let target = &mut flat.narrow(0, start, part.numel());
            match lora.filter(|_| group.trained) {
                Some(lora) => lora.initialise(part, target),
                None => files.copy(part, target)?,
            }
            start += part.numel();
        }
        offset += padded(list[*member].numel());
    }
    Ok(())
}

/// The weights that lie in a buffer, with their indices.
pub(crate) fn views(flat: &Tensor, members: &[usize], list: &[Parameter]) -> Vec<(usize, Tensor)> {
    let mut offset = 0;
    let view = |member: &usize| {
        let parameter = &list[*member];
        let view = flat
            .narrow(0, offset, parameter.numel())
            .view(parameter.shape.as_slice())
            .detach();
        offset += padded(parameter.numel());
        (*member, view)
    };
    members.iter().map(view).collect()
}
