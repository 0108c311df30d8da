// What the programs here share: random numbers on the GPU, and the clock.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CHECK(call)                                                               \
  do {                                                                            \
    cudaError_t status = (call);                                                  \
    if (status != cudaSuccess) {                                                  \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(status)); \
      std::exit(1);                                                               \
    }                                                                             \
  } while (0)

#include "../../src/backend/cuda/numbers.cu"

__global__ void fill(uint32_t* words, size_t n, uint32_t seed, uint32_t fraction, uint32_t rest) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    words[i] = uint32_t(z >> 32) & fraction | rest;
  }
}

// Random words: the bits of `fraction` are random, those of `rest` set.
template <typename P>
P* make(size_t bytes, uint32_t seed, uint32_t fraction, uint32_t rest) {
  P* data;
  CHECK(cudaMalloc(&data, (bytes + 3) / 4 * 4));
  fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(data), (bytes + 3) / 4, seed, fraction, rest);
  CHECK(cudaGetLastError());
  return data;
}

template <mlx_lm::Type T>
__host__ __device__ float number(unsigned short bits) {
  if constexpr (T == mlx_lm::Type::BF16) {
    __nv_bfloat16_raw raw{bits};
    return __bfloat162float(__nv_bfloat16(raw));
  } else {
    __half_raw raw{bits};
    return __half2float(__half(raw));
  }
}

// Numbers of either sign of about 2^exponent.
template <mlx_lm::Type T>
unsigned short* numbers(size_t n, uint32_t seed, int exponent) {
  constexpr bool BF = T == mlx_lm::Type::BF16;
  uint32_t bits = BF ? (127 + exponent) << 7 : (15 + exponent) << 10, fraction = BF ? 0x80ff : 0x87ff;
  return make<unsigned short>(n * 2, seed, fraction << 16 | fraction, bits << 16 | bits);
}

template <typename P>
std::vector<P> on_host(const P* data, size_t n) {
  std::vector<P> copy(n);
  CHECK(cudaMemcpy(copy.data(), data, n * sizeof(P), cudaMemcpyDeviceToHost));
  return copy;
}

// The median time in µs of what `launches` starts on a stream, captured in a graph.
template <typename F>
double median_time(F launches, int times = 10) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cudaEvent_t start, end;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  launches(stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&ready, graph, 0));
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  std::vector<float> found;
  for (int i = 0; i < times + 2; i++) {
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(ready, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, end));
    if (i > 1) found.push_back(ms);
  }
  CHECK(cudaGraphExecDestroy(ready));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  std::sort(found.begin(), found.end());
  return found[found.size() / 2] * 1e3;
}

inline int multiprocessors_of_gpu() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  return device.multiProcessorCount;
}
