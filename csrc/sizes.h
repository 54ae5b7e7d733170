// Sizes in words.
// In: bytes. Out: a text such as "1.50 GiB", as teraio/sizes.py has it.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>

namespace teraio {

inline std::string format_size(uint64_t nbytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB"};
  constexpr int kDigits[] = {0, 1, 1, 2};
  auto size = static_cast<double>(nbytes);
  int unit = 0;
  for (; unit < 3 && size >= 1024; ++unit) size /= 1024;
  char text[64];
  std::snprintf(text, sizeof text, "%.*f %s", kDigits[unit], size, kUnits[unit]);
  return text;
}

}  // namespace teraio
