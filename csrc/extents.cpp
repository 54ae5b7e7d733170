#include "extents.h"

#include <iterator>

namespace teraio {

std::optional<Extent> ExtentMap::allocate(uint64_t nbytes) {
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second >= nbytes && (best == free_.end() || it->second < best->second)) best = it;
  }
  if (best == free_.end()) return std::nullopt;
  const Extent extent{best->first, nbytes};
  allocate_at(extent);
  return extent;
}

bool ExtentMap::allocate_at(const Extent& extent) {
  auto it = free_.upper_bound(extent.offset);
  if (it == free_.begin()) return false;
  --it;
  const uint64_t begin = it->first;
  const uint64_t end = begin + it->second;
  const uint64_t last = extent.offset + extent.nbytes;
  if (last > end) return false;
  free_.erase(it);
  if (extent.offset > begin) free_[begin] = extent.offset - begin;
  if (end > last) free_[last] = end - last;
  return true;
}

void ExtentMap::free(const Extent& extent) {
  uint64_t begin = extent.offset;
  uint64_t end = begin + extent.nbytes;
  auto next = free_.lower_bound(begin);
  if (next != free_.end() && next->first == end) {
    end += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == begin) {
      begin = before->first;
      free_.erase(before);
    }
  }
  free_[begin] = end - begin;
}

}  // namespace teraio
