//! MLX's groups of processes and the one collective operation that is needed of them, which mlx-rs does not wrap. Delete this when
//! it does.
//!
//! Reference: `mlx.core.distributed`.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use mlx_rs::{Array, Device, StreamOrDevice};
use mlx_sys as sys;

use crate::error::{Error, Result};

/// Processes that compute together, each with its rank.
#[derive(Debug, Clone)]
pub struct Group(Arc<Handle>);

#[derive(Debug)]
struct Handle(sys::mlx_distributed_group);

// SAFETY: the handle is a pointer to an immutable group that MLX counts the references of; MLX's operations on it are queued on
// streams, as those on arrays are.
unsafe impl Send for Handle {}
// SAFETY: as for `Send`.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it is a group of MLX's that nothing uses after this.
        unsafe { sys::mlx_distributed_group_free(self.0) };
    }
}

impl Group {
    /// Meet the other processes, over whichever of MLX's backends the environment describes (`MLX_HOSTFILE`, `NCCL_HOST_IP` and
    /// others).
    ///
    /// # Errors
    /// When MLX cannot, which it does not explain.
    pub fn join() -> Result<Self> {
        // mlx-rs keeps MLX from ending the process at an error from the first call on that it checks itself.
        Device::try_default()?;
        // SAFETY: MLX writes a group to a handle that is ours, when it gives 0.
        unsafe {
            let mut group = sys::mlx_distributed_group_new();
            match sys::mlx_distributed_init(&raw mut group, true, c"any".as_ptr()) {
                0 => Ok(Group(Handle(group).into())),
                _ => Err(Error::Ranks("MLX could not connect the ranks that the environment describes".into())),
            }
        }
    }

    /// This process, from 0 on.
    pub fn rank(&self) -> i32 {
        // SAFETY: the group lives.
        unsafe { sys::mlx_distributed_group_rank(self.0.0) }
    }

    /// How many processes there are.
    pub fn size(&self) -> i32 {
        // SAFETY: the group lives.
        unsafe { sys::mlx_distributed_group_size(self.0.0) }
    }

    /// The most that a process has of `n` things that are shared out.
    pub fn largest_share(&self, n: i32) -> i32 {
        (n + self.size() - 1) / self.size()
    }

    /// What this process has of them; the last ones may have fewer.
    pub fn share(&self, n: i32) -> Range<i32> {
        let (rank, each) = (self.rank(), self.largest_share(n));
        (rank * each).min(n)..((rank + 1) * each).min(n)
    }

    /// The arrays `[N, …]` of all ranks, in their order: `[size · N, …]`.
    ///
    /// # Errors
    /// When it cannot be described.
    pub fn all_gather(&self, x: &Array) -> Result<Array> {
        // SAFETY: the handles live through the call, which writes a new array to one that is ours when it gives 0.
        unsafe {
            let mut gathered = sys::mlx_array_new();
            let stream = StreamOrDevice::default();
            match sys::mlx_distributed_all_gather(&raw mut gathered, x.as_ptr(), self.0.0, stream.as_ref().as_ptr()) {
                0 => Ok(Array::from_ptr(gathered)),
                _ => Err(Error::Ranks(format!("MLX cannot gather {:?} of {:?} from all ranks", x.shape(), x.dtype()))),
            }
        }
    }
}
