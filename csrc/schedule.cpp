#include "schedule.h"

#include <algorithm>

namespace teraio {
namespace {
// How far ahead an unexpected op is looked for before the next anchor is awaited instead.
constexpr uint32_t kLookAhead = 32;
constexpr uint64_t kNever = uint64_t{1} << 40;
}  // namespace

int64_t Schedule::match(uint32_t signature) {
  if (lost_) return -1;
  const uint32_t end = std::min(size(), next_ + kLookAhead);
  for (uint32_t at = next_; at < end; ++at) {
    if (signatures[at] == signature) {
      next_ = at + 1;
      return at;
    }
  }
  // An op more than planned is harmless: stay. What follows is found again, or the next anchor tells.
  return -1;
}

void Schedule::jump(uint64_t key, uint32_t occurrence) {
  const auto found = anchors.find(key);
  if (found == anchors.end()) {
    lost_ = true;
    return;
  }
  // More occurrences than planned (an iteration cut short and begun anew, one micro-batch more) run it again.
  const uint32_t to = found->second[occurrence % found->second.size()];
  if (to < next_) fired_ = to;  // a stretch is run again
  next_ = to;
  lost_ = false;
}

void Schedule::restart() {
  next_ = 0;
  fired_ = 0;
  lost_ = false;
}

int64_t Schedule::due() {
  while (fired_ < next_) {
    const uint32_t at = fired_++;
    if (action_offsets[at] != action_offsets[at + 1]) return at;
  }
  return -1;
}

uint64_t Schedule::distance(int32_t storage) const {
  const auto s = static_cast<size_t>(storage);
  const auto begin = uses.begin() + use_offsets[s];
  const auto end = uses.begin() + use_offsets[s + 1];
  const auto use = std::lower_bound(begin, end, next_);
  if (use != end) return *use - next_;
  return persistent[s] && begin != end ? size() - next_ + *begin : kNever;
}

}  // namespace teraio
