//! Types of numbers, those of 16 bits as bits. Nothing here or in the kernels includes a header, so that the run-time compiler takes
//! them as they are.

namespace mlx_lm {

enum class Type { F16, BF16, F32 };

template <Type T>
__device__ float to_float(unsigned short bits) {
  if constexpr (T == Type::BF16) return __uint_as_float(unsigned(bits) << 16);
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

template <Type T>
__device__ unsigned short from_float(float value) {
  unsigned short bits;
  if constexpr (T == Type::BF16)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// The sum over a warp, in every lane.
__device__ inline float sum_over_warp(float value) {
#pragma unroll
  for (int k = 16; k; k /= 2) value = __fadd_rn(value, __shfl_xor_sync(~0u, value, k));
  return value;
}

// What another multiprocessor may have written since this kernel started: out of the cache that all share.
__device__ inline unsigned short load_shared_by_all(const unsigned short* from) {
  unsigned short value;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline float load_shared_by_all(const float* from) {
  float value;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
  return value;
}

// The next kernel on the stream may start once all blocks of this one have called this, so that what it reads of weights is under
// way when this one ends. Before `await_previous`, it reads nothing that a kernel wrote, and writes nothing.
__device__ inline void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until the kernel before this one has ended, and all that it wrote is seen.
__device__ inline void await_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace mlx_lm
