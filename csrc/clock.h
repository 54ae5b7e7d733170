// The clock that durations are taken from.
#pragma once
#include <chrono>
#include <cstdint>

namespace teraio {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace teraio
