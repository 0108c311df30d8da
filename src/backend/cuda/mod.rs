//! Kernels for NVIDIA GPUs: what MLX's CUDA backend computes slowly. Each is CUDA C++ in a `.cu` file here, compiled at run
//! time for the GPU at hand; streams, memory and the graph are MLX's. What is not done here, or does not compile on a GPU, is
//! declined, so that MLX's operations compute it.

#![allow(unsafe_code)] // MLX's C API and the driver's; each block says why it is sound

mod attention;
mod blocks;
mod decode;
mod driver;
mod gemm;
mod gemv;
mod kernel;
mod node;
mod prompt;
mod rows;
mod sample;
#[cfg(test)]
mod sample_tests;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use mlx_rs::{Array, Dtype};

use super::{Backend, Block, CachedSpan, Choice, Epilogue, Linear, Norm, Phase, Weight};
use crate::error::Result;
use driver::Attribute;
pub use kernel::keep_kernels_in;

/// A GPU that the kernels run on: MLX's.
#[derive(Debug, Clone, Copy)]
pub struct Gpu {
    /// Compute capability: 9 and 0 for Hopper.
    capability: (i32, i32),
    multiprocessors: i32,
    /// Bytes of shared memory that a block can have.
    shared_memory: i32,
}

/// The blocks of a cluster of any GPU that has clusters.
const PORTABLE_CLUSTER: i32 = 8;

impl Gpu {
    /// MLX's GPU, if the kernels run on it: `None` before compute capability 8.0, whose tensor cores cannot do what they need.
    pub fn get() -> Option<&'static Gpu> {
        static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
        GPU.get_or_init(|| {
            let gpu = Gpu {
                capability: (driver::attribute(Attribute::Major)?, driver::attribute(Attribute::Minor)?),
                multiprocessors: driver::attribute(Attribute::Multiprocessors)?,
                shared_memory: driver::attribute(Attribute::SharedMemoryPerBlock)?,
            };
            (gpu.capability >= (8, 0)).then_some(gpu)
        })
        .as_ref()
    }

    /// The blocks of a cluster, which can write to each other's shared memory; 1 where there are none.
    fn max_cluster(&self) -> i32 {
        match self.capability.0 {
            ..9 => 1,
            9 | 10 => 16,
            _ => PORTABLE_CLUSTER,
        }
    }

    /// What kernels are compiled for; of Hopper, with what only it has.
    fn architecture(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm_{major}{minor}{}", if self.capability == (9, 0) { "a" } else { "" })
    }

    /// As [`Backend::linear`] for few vectors, with what else is done on the way.
    pub fn linear_fused(
        &self,
        x: &Array,
        layers: &[Linear],
        epilogue: Epilogue,
        fused: Fused,
    ) -> Option<Result<Array>> {
        gemv::linear(self, x, layers, epilogue, fused)
    }
}

/// What a linear layer may do besides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fused<'a> {
    /// Root-mean-square normalisation of the input, with a weight and an eps.
    pub norm: Option<(&'a Array, f32)>,
    /// Added to the output, and of its shape.
    pub residual: Option<&'a Array>,
}

impl Backend for Gpu {
    fn blocks(&self, x: &Array, blocks: &[Block], spans: &mut [CachedSpan]) -> Option<Result<Array>> {
        blocks::blocks(self, x, blocks, spans)
    }

    fn linear(&self, x: &Array, layers: &[Linear], epilogue: Epilogue, phase: Phase) -> Option<Result<Array>> {
        match (phase, layers, epilogue) {
            (Phase::Decode, ..) => self.linear_fused(x, layers, epilogue, Fused::default()),
            (Phase::Prefill, [layer], Epilogue::Concat) => rows::linear_of_prompt(self, x, layer),
            (Phase::Prefill, ..) => None,
        }
    }

    fn embedding(&self, ids: &Array, weight: &Weight) -> Option<Result<Array>> {
        rows::embedding(self, ids, weight)
    }

    fn rms_norm(&self, x: &Array, norm: Norm) -> Option<Result<Array>> {
        rows::rms_norm(self, x, norm)
    }

    fn sample(&self, logits: &Array, choices: &[Choice]) -> Option<Result<Array>> {
        sample::sample(self, logits, choices)
    }

    fn upload(&self, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Option<Result<Array>> {
        Some(node::upload(bytes, shape, dtype))
    }

    fn holds_all(&self) -> bool {
        true
    }

    fn failure(&self) -> Result<()> {
        node::failure()
    }

    fn describe(&self) -> String {
        format!("cuda, compute capability {}.{}", self.capability.0, self.capability.1)
    }
}
