// mlx-rs seeds its default random state from a macOS clock. Only that it differs from run to run matters.
#include <chrono>
#include <cstdint>

extern "C" std::uint64_t mach_approximate_time() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}
