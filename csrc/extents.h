// Which ranges of a tier's space are free.
// In: sizes. Out: extents. Must not know: what is in them, where the space is.
#pragma once
#include <cstdint>
#include <map>
#include <optional>

namespace teraio {

struct Extent {
  uint64_t offset = 0;
  uint64_t nbytes = 0;
};

// Not thread-safe: the engine calls it under its mutex. Sizes and offsets are multiples of kPage.
class ExtentMap {
 public:
  // The smallest free range that fits; nothing when none does.
  std::optional<Extent> allocate(uint64_t nbytes);
  // This very range; false when not all of it is free.
  bool allocate_at(const Extent& extent);
  // Also how the space grows: what was never allocated may be freed once.
  void free(const Extent& extent);

 private:
  std::map<uint64_t, uint64_t> free_;  // offset -> nbytes, neighbours merged
};

}  // namespace teraio
