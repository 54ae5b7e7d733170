// The clock that durations are taken from.
#pragma once
#include <chrono>
#include <cstdint>

namespace teraio {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

inline double seconds_since(int64_t begin_ns) { return static_cast<double>(now_ns() - begin_ns) * 1e-9; }

}  // namespace teraio
