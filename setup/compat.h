// Included before every source of the MLX C API on Linux: what those sources take from macOS or a newer compiler.
#pragma once

// mlx/c/half.h knows the 16-bit floats of Arm compilers only; skip it and use MLX's own types.
#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16

#ifdef __cplusplus
#include "mlx/types/half_types.h"
using float16_t = mlx::core::float16_t;
using bfloat16_t = mlx::core::bfloat16_t;

// <format> came with GCC 13. The C API formats strings and integers into plain `{}` and nothing else.
#include <version>
#ifndef __cpp_lib_format
#include <sstream>
#include <string>
#include <string_view>
namespace std {
template <class... Args>
string format(string_view pattern, const Args&... args) {
  ostringstream out;
  auto upto_placeholder = [&] {
    const auto at = pattern.find("{}");
    out << pattern.substr(0, at);
    pattern.remove_prefix(at == string_view::npos ? pattern.size() : at + 2);
  };
  ((upto_placeholder(), out << args), ...);
  out << pattern;
  return out.str();
}
} // namespace std
#endif
#endif
