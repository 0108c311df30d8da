//! What kernels on the tensor cores share, behind `numbers.cu`: asynchronous copies to shared memory, the matrix instruction, and
//! weights of four bits as numbers, activations and residuals.

namespace mlx_lm {

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// The first multiple of `of` that is not below n.
__host__ __device__ constexpr int up_to(int n, int of) { return (n + of - 1) / of * of; }

// BYTES to shared memory, of which the first `has` are read and the others zeros.
template <int BYTES>
__device__ void copy_async(void* to, const void* from, int has = BYTES) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(has) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(BYTES), "r"(has) : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than PENDING of the thread's groups of copies are under way.
template <int PENDING>
__device__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// BYTES of shared memory in registers.
template <int BYTES>
struct Words {
  unsigned of[(BYTES + 3) / 4];

  __device__ void load(const unsigned char* from) {
    if constexpr (BYTES == 16) {
      uint4 four = *reinterpret_cast<const uint4*>(from);
      of[0] = four.x, of[1] = four.y, of[2] = four.z, of[3] = four.w;
    } else if constexpr (BYTES == 8) {
      uint2 two = *reinterpret_cast<const uint2*>(from);
      of[0] = two.x, of[1] = two.y;
    } else if constexpr (BYTES == 4) {
      of[0] = *reinterpret_cast<const unsigned*>(from);
    } else {
      static_assert(BYTES == 2);
      of[0] = *reinterpret_cast<const unsigned short*>(from);
    }
  }

  // One of 16 bits.
  __device__ unsigned short number(int i) const { return static_cast<unsigned short>(of[i / 2] >> i % 2 * 16); }
};

// Eight numbers, in pairs, which other multiprocessors may have written since this kernel started.
__device__ inline void load_eight(const unsigned short* from, unsigned (&pairs)[4]) {
  if (reinterpret_cast<size_t>(from) % 16 == 0) {
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3]) : "l"(from) : "memory");
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++) pairs[k] = load_shared_by_all(from + 2 * k) | unsigned(load_shared_by_all(from + 2 * k + 1)) << 16;
  }
}

// A barrier in shared memory, whose phase ends when so many have arrived.
__device__ inline void prepare_barrier(unsigned long long* barrier, int arrivals) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}

__device__ inline void arrive(unsigned long long* barrier) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(at) : "memory");
}

// Until the phase of this parity has ended.
__device__ inline void await_barrier(unsigned long long* barrier, int parity) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier)), done;
  do {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(at), "r"(parity) : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(at), "r"(parity) : "memory");
#endif
  } while (!done);
}

// Two numbers of a pair.
template <Type T>
__device__ float2 to_floats(unsigned pair) {
  if constexpr (T == Type::BF16) return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
  return {to_float<T>(static_cast<unsigned short>(pair)), to_float<T>(static_cast<unsigned short>(pair >> 16))};
}

template <Type T>
__device__ unsigned from_floats(float low, float high) {
  unsigned pair;
  if constexpr (T == Type::BF16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// What is added to four bits: as a number, and as the bits of two.
template <Type T>
__device__ constexpr float offset() { return T == Type::BF16 ? 128 : 1024; }
template <Type T>
__device__ constexpr unsigned OFFSETS = T == Type::BF16 ? 0x43004300 : 0x64006400;

// offset + four bits each, as two numbers: those from bit 4 i on, and from bit 16 + 4 i.
template <Type T>
__device__ unsigned four_bits(unsigned word, int i) {
  unsigned pair;
  asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(pair) : "r"(word >> 4 * i), "n"(OFFSETS<T>));
  return pair;
}

// d = a · b + d, or a · b where it begins: a 16 × 16, b 16 × 8.
template <Type T>
__device__ void multiply_add(float (&d)[4], bool begins, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  float c[4] = {begins ? 0 : d[0], begins ? 0 : d[1], begins ? 0 : d[2], begins ? 0 : d[3]};
  if constexpr (T == Type::BF16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Four 8 × 8 matrices of 16 bits; a lane has the address of a row.
template <bool TRANSPOSED = false>
__device__ void load_matrices(const unsigned char* at, unsigned (&of)[4]) {
  unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(at));
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(of[0]), "=r"(of[1]), "=r"(of[2]), "=r"(of[3]) : "r"(from) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(of[0]), "=r"(of[1]), "=r"(of[2]), "=r"(of[3]) : "r"(from) : "memory");
}

// The column that is at a place of 64, in tokens that are multiplied with weights of so many bits. Sixteen places are one matrix
// instruction's: a lane of four has two of the first eight, and two of the others.
template <int BITS>
__host__ __device__ constexpr int column_at(int place) {
  int step = place / 16, half = place / 8 % 2, lane = place % 8 / 2, of_pair = place % 2;
  if (BITS == 4) return 8 * (2 * lane + step / 2) + 2 * (step % 2) + half + 4 * of_pair;
  if (BITS == 8) return 4 * (4 * lane + step) + half + 2 * of_pair;
  return place;
}

// The place of a column.
template <int BITS>
__host__ __device__ constexpr int place_of(int column) {
  if (BITS == 4) {
    int word = column / 8, i = column % 4;
    return (2 * (word % 2) + i / 2) * 16 + i % 2 * 8 + word / 2 * 2 + column % 8 / 4;
  }
  if (BITS == 8) return column / 4 % 4 * 16 + column % 2 * 8 + column / 16 * 2 + column % 4 / 2;
  return column;
}

enum class Activation { NONE, SILU, GELU_TANH };

// Each is x times a sigmoid.
__device__ inline float activated(Activation activation, float x) {
  float of = activation == Activation::SILU ? x : __fmul_rn(1.5957691216f, __fmaf_rn(__fmul_rn(0.044715f, x), __fmul_rn(x, x), x));
  return __fdividef(x, __fadd_rn(1, __expf(-of)));
}

// How a layer's output is added to what it came from; see `backend::Residual`.
struct Residual {
  const unsigned short* of;  // of the output's shape, or null
  float multiplier;          // of the output
  float most;                // the largest sum, or ∞

  __device__ float sum(float output, float of) const {
    float sum = __fmaf_rn(multiplier, output, of);
    return sum > most ? most : sum < -most ? -most : sum;
  }
};

}  // namespace mlx_lm
