//! Who computes in place of MLX's own operations.

pub mod cpu;
