//! Where the gradients of weights go: straight into the buffers of the step, one weight at a time.

use std::collections::HashMap;

use tch::Tensor;

use crate::lora::Adapter;
use crate::optimizer::Gradients;
use crate::parameters::Parameters;

/// Takes gradients of the trained weights and leaves those of the others.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    weights: &'a Parameters,
    gradients: &'a mut Gradients,
    /// Trained weights by the address of their values.
    places: HashMap<usize, usize>,
}

fn address(weight: &Tensor) -> usize {
    weight.data_ptr() as usize
}

impl<'a> Sink<'a> {
    pub(crate) fn new(weights: &'a Parameters, gradients: &'a mut Gradients) -> Self {
        let places = (weights.trained().into_iter())
            .map(|index| (address(&weights.tensors[index]), index))
            .collect();
        Self {
            weights,
            gradients,
            places,
        }
    }

    /// The place of a weight; None for one that is not trained.
    fn place(&self, weight: &Tensor) -> Option<usize> {
        (weight.requires_grad())
            .then(|| self.places.get(&address(weight)).copied())
            .flatten()
    }

    /// The sum of gradients of a weight; None for one that is not trained.
    fn sum(&mut self, weight: &Tensor) -> Option<Tensor> {
        let index = self.place(weight)?;
        Some(self.gradients.sum(self.weights, index))
    }

    /// Adds a gradient.
    pub(crate) fn add(&mut self, weight: &Tensor, gradient: &Tensor) {
        if let Some(mut sum) = self.sum(weight) {
            drop(sum.g_add_(gradient));
        }
    }

    /// Adds the gradient of a matrix, or of its adapters, for what it was multiplied with and the gradient of what came out.
    ///
    /// # Shapes
    /// - `weight`: `[n, w]`; `x`: `[t, w]`; `d_y`: `[t, n]`
    pub(crate) fn product(
        &mut self,
        weight: &Tensor,
        adapter: Option<&Adapter>,
        x: &Tensor,
        d_y: &Tensor,
    ) {
        if let Some(index) = self.place(weight) {
            let (sum, is_unwritten) = self.gradients.memory(self.weights, index);
            add_product(sum, is_unwritten, &d_y.tr(), x);
        }
        for (index, gradient) in adapter
            .map(|adapter| adapter.gradients(x, d_y))
            .unwrap_or_default()
        {
            drop(self.gradients.sum(self.weights, index).g_add_(&gradient));
        }
    }

    /// Adds the gradient of a bias for that of what came out, `[t, n]`.
    pub(crate) fn bias(&mut self, bias: &Tensor, d_y: &Tensor) {
        if let Some(mut sum) = self.sum(bias) {
            drop(sum.g_add_(&d_y.sum_dim_intlist(0, false, sum.kind())));
        }
    }

    /// Adds the gradient of the rows of a table that were read.
    ///
    /// # Shapes
    /// - `table`: `[v, w]`; `ids`: `[t]`; `d_x`: `[t, w]`
    pub(crate) fn rows(&mut self, table: &Tensor, ids: &Tensor, d_x: &Tensor) {
        if let Some(mut sum) = self.sum(table) {
            drop(sum.index_add_(0, ids, &d_x.to_kind(sum.kind())));
        }
    }

    /// Trained weights whose name in memory begins with one of these.
    pub(crate) fn below(&self, prefixes: &[&str]) -> Vec<Tensor> {
        let trained = self.weights.trained().into_iter();
        trained
            .filter(|index| {
                let name = &self.weights.list[*index].name;
                prefixes.iter().any(|prefix| name.starts_with(prefix))
            })
            .map(|index| self.weights.tensors[index].shallow_clone())
            .collect()
    }
}

/// `sum += a b`, or `sum = a b` where nothing is in it yet.
fn add_product(mut sum: Tensor, is_unwritten: bool, a: &Tensor, b: &Tensor) {
    let kind = sum.kind();
    drop(if kind == a.kind() {
        if is_unwritten {
            a.mm_out(&sum, b)
        } else {
            sum.addmm_(a, b)
        }
    } else if sum.device().is_cuda() {
        // Products of 16-bit numbers that are added up and stay in 32 bits.
        if is_unwritten {
            a.mm_dtype_out(&sum, b, kind)
        } else {
            sum.addmm_dtype_out(&sum, a, b, kind)
        }
    } else if is_unwritten {
        sum.copy_(&a.mm(b));
        sum
    } else {
        sum.g_add_(&a.mm(b))
    });
}
