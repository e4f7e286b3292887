//! Matrix products with weights through cuBLASLt, with the algorithm chosen by us.
//!
//! libtorch asks for an algorithm at each call. Here it is chosen once for each shape, the first of the library's list. What a row of a
//! product is then depends on the shape alone.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;

use cudarc::cublaslt::sys::{self, cublasStatus_t};
use engine_core::error::ModelError;
use tch::{Device, Kind, Tensor};

use super::driver::{Stream, address};

/// Bytes that an algorithm may use for itself.
const WORKSPACE: usize = 64 << 20;
/// Algorithms that are asked for. The first is taken: measured on an H100, none of the others is faster by more than 3 %, and a choice
/// by timing could differ after a restart.
const CANDIDATES: usize = 1;

/// Rows, outputs and inputs of a product, and whether the result has 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) rows: i64,
    pub(super) outputs: i64,
    pub(super) inputs: i64,
    pub(super) is_wide: bool,
}

#[derive(Debug)]
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    output: sys::cublasLtMatrixLayout_t,
    candidates: Vec<sys::cublasLtMatmulAlgo_t>,
    chosen: usize,
}

/// Products on one stream.
#[derive(Debug)]
pub(super) struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: Tensor,
    plans: BTreeMap<Shape, Plan>,
}

fn check(status: cublasStatus_t, what: &str) -> Result<(), ModelError> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        Ok(())
    } else {
        Err(ModelError::Backend(format!("cuBLASLt: {what}: {status:?}")))
    }
}

#[expect(unsafe_code, reason = "calls cuBLASLt")]
impl Gemm {
    pub(super) fn new(device: Device) -> Result<Self, ModelError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        check(unsafe { sys::cublasLtCreate(&raw mut handle) }, "opening")?;
        Ok(Self {
            handle,
            workspace: Tensor::empty([WORKSPACE as i64], (Kind::Uint8, device)),
            plans: BTreeMap::new(),
        })
    }

    /// Chooses algorithms for a shape, if that is not done yet.
    pub(super) fn prepare(&mut self, shape: Shape) -> Result<(), ModelError> {
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(shape)?;
            self.plans.insert(shape, plan);
        }
        Ok(())
    }

    /// `out = input weight^T`; the shape must have been prepared.
    ///
    /// # Shapes
    /// - `weight`: `[outputs, inputs]` bf16; `input`: `[rows, inputs]` bf16; `out`: `[rows, outputs]` bf16, or 32 bits
    pub(super) fn run(
        &self,
        stream: &Stream,
        shape: Shape,
        weight: &Tensor,
        input: &Tensor,
        out: &Tensor,
    ) -> Result<(), ModelError> {
        let plan = self
            .plans
            .get(&shape)
            .ok_or_else(|| ModelError::Backend(format!("no algorithm was chosen for {shape:?}")))?;
        let algorithm = &plan.candidates[plan.chosen];
        check(
            self.call(stream, plan, algorithm, weight, input, out),
            "a product",
        )
    }

    fn call(
        &self,
        stream: &Stream,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        weight: &Tensor,
        input: &Tensor,
        out: &Tensor,
    ) -> cublasStatus_t {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let pointer = |tensor: &Tensor| address(tensor) as *mut c_void;
        // SAFETY: the layouts were made for these shapes, which the engine checks against its buffers; the scalars are read
        // before the call returns.
        unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.operation,
                (&raw const one).cast(),
                pointer(weight),
                plan.weight,
                pointer(input),
                plan.input,
                (&raw const zero).cast(),
                pointer(out),
                plan.output,
                pointer(out),
                plan.output,
                algorithm,
                pointer(&self.workspace),
                WORKSPACE,
                stream.raw.cast(),
            )
        }
    }

    /// In the library's terms the result is `[outputs, rows]` by columns: the weight transposed times the input.
    fn plan(&self, shape: Shape) -> Result<Plan, ModelError> {
        let layout = |kind, rows: i64, columns: i64| {
            let mut layout = ptr::null_mut();
            // SAFETY: the pointer is to a live handle.
            let status = unsafe {
                sys::cublasLtMatrixLayoutCreate(
                    &raw mut layout,
                    kind,
                    rows as u64,
                    columns as u64,
                    rows,
                )
            };
            check(status, "a layout").map(|()| layout)
        };
        let half = sys::cudaDataType_t::CUDA_R_16BF;
        let wide = sys::cudaDataType_t::CUDA_R_32F;
        let weight = layout(half, shape.inputs, shape.outputs)?;
        let input = layout(half, shape.inputs, shape.rows)?;
        let output = layout(
            if shape.is_wide { wide } else { half },
            shape.outputs,
            shape.rows,
        )?;
        let mut operation = ptr::null_mut();
        // `CUBLAS_OP_T` of the header of cuBLAS.
        let transpose = 1_i32;
        // SAFETY: pointers are to live values of the sizes that are given.
        unsafe {
            let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
            check(
                sys::cublasLtMatmulDescCreate(&raw mut operation, compute, wide),
                "a product",
            )?;
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            let value = (&raw const transpose).cast();
            let size = size_of_val(&transpose);
            check(
                sys::cublasLtMatmulDescSetAttribute(operation, attribute, value, size),
                "transposing",
            )?;
        }
        let candidates = self.candidates(operation, weight, input, output)?;
        if candidates.is_empty() {
            return Err(ModelError::Backend(format!(
                "cuBLASLt has no algorithm for {shape:?}"
            )));
        }
        Ok(Plan {
            operation,
            weight,
            input,
            output,
            candidates,
            chosen: 0,
        })
    }

    fn candidates(
        &self,
        operation: sys::cublasLtMatmulDesc_t,
        weight: sys::cublasLtMatrixLayout_t,
        input: sys::cublasLtMatrixLayout_t,
        output: sys::cublasLtMatrixLayout_t,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, ModelError> {
        let mut preference = ptr::null_mut();
        let mut found = 0;
        // SAFETY: pointers are to live values of the sizes that are given; the list has room for what is asked for, and any bits
        // are valid in it.
        unsafe {
            let mut list: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = std::mem::zeroed();
            check(
                sys::cublasLtMatmulPreferenceCreate(&raw mut preference),
                "preferences",
            )?;
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let limit = WORKSPACE;
            let value = (&raw const limit).cast();
            let size = size_of_val(&limit);
            let set = sys::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size);
            let asked = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                operation,
                weight,
                input,
                output,
                output,
                preference,
                CANDIDATES as i32,
                list.as_mut_ptr(),
                &raw mut found,
            );
            sys::cublasLtMatmulPreferenceDestroy(preference);
            check(set, "preferences")?;
            check(asked, "algorithms")?;
            let count = usize::try_from(found).unwrap_or(0);
            Ok(list[..count]
                .iter()
                .filter(|result| result.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS)
                .map(|result| result.algo)
                .collect())
        }
    }
}

#[expect(unsafe_code, reason = "calls cuBLASLt")]
impl Drop for Gemm {
    fn drop(&mut self) {
        for plan in self.plans.values() {
            // SAFETY: made by `plan` and destroyed once.
            unsafe {
                sys::cublasLtMatmulDescDestroy(plan.operation);
                for layout in [plan.weight, plan.input, plan.output] {
                    sys::cublasLtMatrixLayoutDestroy(layout);
                }
            }
        }
        // SAFETY: no product is started after its owner.
        unsafe { sys::cublasLtDestroy(self.handle) };
    }
}
