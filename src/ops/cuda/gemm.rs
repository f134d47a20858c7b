//! Dense products through cuBLAS, with the strides that attention's products of heads need.

use std::ffi::c_void;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::{DType, Result, Tensor, bail};

use super::launch::{address, unfilled};

/// A matrix in memory, or one for each of a batch: elements from the tensor's first one on, from one row
/// to the next and from one matrix to the next.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) tensor: &'a Tensor,
    pub(super) first: usize,
    pub(super) row: usize,
    pub(super) matrix: usize,
}

/// How the weight of a product lies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// `[outputs, inputs]`.
    OutputsByInputs,
    /// `[inputs, outputs]`.
    InputsByOutputs,
}

/// `out = x · weight`, for each matrix of a batch: `[rows, inputs]` → `[rows, outputs]`.
pub(super) struct Product<'a> {
    pub(super) x: Operand<'a>,
    pub(super) weight: (Operand<'a>, Weight),
    pub(super) out: Operand<'a>,
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) batch: usize,
}

impl Product<'_> {
    /// Computes it with f32 sums; `x` and `weight` have one dtype, `out` that one or f32.
    pub(super) fn compute(&self) -> Result<()> {
        let (weight, lies) = self.weight;
        if self.x.tensor.dtype() != weight.tensor.dtype() {
            bail!("a product of {:?} and {:?}", self.x.tensor.dtype(), weight.tensor.dtype())
        }
        if self.rows == 0 || self.outputs == 0 {
            return Ok(());
        }
        let device = self.x.tensor.device().as_cuda_device()?;
        device.cuda_stream().context().bind_to_thread().w()?;
        let transposed = match lies {
            Weight::OutputsByInputs => sys::cublasOperation_t::CUBLAS_OP_T,
            Weight::InputsByOutputs => sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let (one, zero) = (1.0f32, 0.0f32);
        // cuBLAS counts columns first: its first factor is our weight, and its result our rows.
        // SAFETY: the operands lie inside of their tensors, which the callers' shapes show; scalars are
        // f32, as the compute type wants them.
        unsafe {
            result::gemm_strided_batched_ex(
                *device.cublas_handle().handle(),
                transposed,
                sys::cublasOperation_t::CUBLAS_OP_N,
                self.outputs as i32,
                self.rows as i32,
                self.inputs as i32,
                std::ptr::from_ref(&one).cast(),
                weight.pointer()?.cast_const(),
                weight.data_type()?,
                weight.row as i32,
                weight.matrix as i64,
                self.x.pointer()?.cast_const(),
                self.x.data_type()?,
                self.x.row as i32,
                self.x.matrix as i64,
                std::ptr::from_ref(&zero).cast(),
                self.out.pointer()?,
                self.out.data_type()?,
                self.out.row as i32,
                self.out.matrix as i64,
                self.batch as i32,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()
    }
}

impl<'a> Operand<'a> {
    /// The rows of a whole tensor of two dimensions.
    pub(super) fn rows(tensor: &'a Tensor) -> Result<Self> {
        Ok(Self { tensor, first: 0, row: tensor.dim(1)?, matrix: 0 })
    }

    fn pointer(&self) -> Result<*mut c_void> {
        let offset = self.first * self.tensor.dtype().size_in_bytes();
        Ok((address(self.tensor)? + offset as u64) as *mut c_void)
    }

    fn data_type(&self) -> Result<sys::cudaDataType> {
        match self.tensor.dtype() {
            DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
            DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
            other => bail!("no product takes {other:?}"),
        }
    }
}

/// `x · weightᵀ` with x rounded to the weight's dtype: `[rows, inputs]`, `[outputs, inputs]` →
/// `[rows, outputs]` f32.
pub(super) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((rows, inputs), (outputs, expected)) = (x.dims2()?, weight.dims2()?);
    if inputs != expected {
        bail!("a product takes rows of {expected}, found {inputs}")
    }
    let x = x.to_dtype(weight.dtype())?;
    let out = unfilled(&[rows, outputs], DType::F32, &x)?;
    let weight = (Operand::rows(weight)?, Weight::OutputsByInputs);
    let (x, target) = (Operand::rows(&x)?, Operand::rows(&out)?);
    Product { x, weight, out: target, rows, inputs, outputs, batch: 1 }.compute()?;
    Ok(out)
}
