#include "allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "stream.h"

namespace sim {
namespace {

constexpr size_t kAlignment = 512;
constexpr size_t kPage = 4096;
// [Note: segments]
// Sizes are an eighth of those of CUDA's allocator, as tests train models of some ten megabytes. Small requests share
// segments with each other only; medium ones share larger segments with all that are not small.
constexpr size_t kSmall = 128 << 10;
constexpr size_t kSmallSegment = 256 << 10;
constexpr size_t kMedium = 1280 << 10;
constexpr size_t kMediumSegment = 2560 << 10;
constexpr size_t kLargeSegmentStep = 256 << 10;
constexpr int kFill = 0xFF;                 // NaN in every floating-point type

size_t round_up(size_t nbytes, size_t multiple) { return (nbytes + multiple - 1) / multiple * multiple; }

// A stretch of a segment, which is what the system gave in one piece. Neighbours are blocks of the same segment.
struct Block {
  char* data;
  size_t nbytes;
  Stream* stream;  // the one it was allocated on, in whose order it is reused
  bool small;
  bool in_use = false;
  Block* before = nullptr;
  Block* after = nullptr;
  std::set<Stream*> users = {};  // other streams that were said to use it

  bool whole_segment() const { return before == nullptr && after == nullptr; }
};

struct BySize {
  bool operator()(const Block* a, const Block* b) const {
    return std::make_pair(a->nbytes, a->data) < std::make_pair(b->nbytes, b->data);
  }
};
using FreeBlocks = std::set<Block*, BySize>;

// A freed block that other streams may still use, and the places they have to reach first.
struct Awaited {
  Block* block;
  std::vector<std::shared_ptr<Event>> events;
};

class Allocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    if (nbytes == 0) return {nullptr, device()};
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    Block* block = take(round_up(nbytes, kAlignment), current_stream());
    block->in_use = true;
    in_use_[block->data] = block;
    counts_.allocated += static_cast<int64_t>(block->nbytes);
    counts_.peak = std::max(counts_.peak, counts_.allocated);
    return {block->data, block->data, &free_data, device()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_data; }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    current_stream().launch([=] { std::memcpy(to, from, count); });
  }
  bool initialized() override { return true; }

  void emptyCache(c10::MempoolId_t /*pool*/) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    await_users(/*wait=*/true);
    release_free_segments();
  }

  // Memory that did not come from here, or whose deleter was replaced, is not ours to keep.
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    if (data.get_deleter() != &free_data) return;
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    Block* block = in_use_.at(data.get());
    if (Stream* user = &stream_of(stream); user != block->stream) block->users.insert(user);
  }

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex /*device*/) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[kAll].current = counts_.allocated;
    stats.allocated_bytes[kAll].peak = counts_.peak;
    stats.reserved_bytes[kAll].current = counts_.reserved;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex /*device*/) override {}
  void resetPeakStats(c10::DeviceIndex /*device*/) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    counts_.peak = counts_.allocated;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex /*device*/) override {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return {static_cast<size_t>(kMemoryBytes - counts_.reserved), static_cast<size_t>(kMemoryBytes)};
  }

  MemoryCounts counts() {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return counts_;
  }
  void set_limit(int64_t nbytes) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    limit_ = nbytes < 0 ? kMemoryBytes : std::min(nbytes, kMemoryBytes);
  }
  void set_callback(FreeMemoryCallback callback, bool every_miss) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    callback_ = callback;
    callback_at_every_miss_ = every_miss;
  }

 private:
  static void free_data(void* data);

  Block* take(size_t nbytes, Stream& stream) {
    await_users(/*wait=*/false);
    if (Block* block = take_free(nbytes, stream)) return block;
    if (callback_ != nullptr && (callback_at_every_miss_ || !fits(segment_size(nbytes))) && callback_()) {
      if (Block* block = take_free(nbytes, stream)) return block;
    }
    if (!fits(segment_size(nbytes))) {
      await_users(/*wait=*/true);
      release_free_segments();
    }
    if (!fits(segment_size(nbytes))) throw_out_of_memory(nbytes);
    return split(new_segment(segment_size(nbytes), nbytes <= kSmall, stream), nbytes);
  }

  static size_t segment_size(size_t nbytes) {
    if (nbytes <= kSmall) return kSmallSegment;
    return nbytes < kMedium ? kMediumSegment : round_up(nbytes, kLargeSegmentStep);
  }

  bool fits(size_t nbytes) const { return counts_.reserved + static_cast<int64_t>(nbytes) <= limit_; }

  FreeBlocks& free_blocks(Stream* stream, bool small) { return free_[{stream, small}]; }

  Block* take_free(size_t nbytes, Stream& stream) {
    FreeBlocks& blocks = free_blocks(&stream, nbytes <= kSmall);
    Block wanted{nullptr, nbytes, &stream, false};
    const auto fitting = blocks.lower_bound(&wanted);
    if (fitting == blocks.end()) return nullptr;
    Block* block = *fitting;
    blocks.erase(fitting);
    return split(block, nbytes);
  }

  // The first `nbytes` of the block; the rest, unless it is too little to be of use, becomes a free block.
  Block* split(Block* block, size_t nbytes) {
    const size_t rest_nbytes = block->nbytes - nbytes;
    if (rest_nbytes < (block->small ? kAlignment : kSmall + 1)) return block;
    auto* rest = new Block{block->data + nbytes, rest_nbytes, block->stream, block->small};
    rest->before = block;
    rest->after = block->after;
    if (rest->after != nullptr) rest->after->before = rest;
    block->after = rest;
    block->nbytes = nbytes;
    free_blocks(rest->stream, rest->small).insert(rest);
    return block;
  }

  Block* new_segment(size_t nbytes, bool small, Stream& stream) {
    void* data = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(data != MAP_FAILED, "the system gave no ", nbytes, " bytes of memory for the sim device");
    std::memset(data, kFill, nbytes);
    counts_.reserved += static_cast<int64_t>(nbytes);
    return new Block{static_cast<char*>(data), nbytes, &stream, small};
  }

  [[noreturn]] void throw_out_of_memory(size_t nbytes) const {
    C10_THROW_ERROR(OutOfMemoryError, "sim out of memory: tried to allocate " + std::to_string(nbytes) + " bytes; " +
                                          std::to_string(counts_.allocated) + " are allocated, " +
                                          std::to_string(counts_.reserved) + " reserved, the limit is " +
                                          std::to_string(limit_));
  }

  // [Note: freed at once, in stream order]
  // A freed block may be given out again while kernels that use it still wait in its stream: what the new owner
  // launches on that stream comes after them. Another stream's kernels are in no such order; unless recordStream() was
  // called for them, they meet the fill below, or the data of the next owner, just as on hardware.
  void give_back(Block* block) {
    block->stream->launch([data = block->data, nbytes = block->nbytes] { std::memset(data, kFill, nbytes); });
    block->in_use = false;
    FreeBlocks& blocks = free_blocks(block->stream, block->small);
    if (Block* after = block->after; after != nullptr && !after->in_use) {
      blocks.erase(after);
      absorb_next(block);
    }
    if (Block* before = block->before; before != nullptr && !before->in_use) {
      blocks.erase(before);
      absorb_next(before);
      block = before;
    }
    blocks.insert(block);
  }

  static void absorb_next(Block* block) {
    const std::unique_ptr<Block> next(block->after);
    block->nbytes += next->nbytes;
    block->after = next->after;
    if (block->after != nullptr) block->after->before = block;
  }

  void free(void* data) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    const auto found = in_use_.find(data);
    Block* block = found->second;
    in_use_.erase(found);
    counts_.allocated -= static_cast<int64_t>(block->nbytes);
    if (block->users.empty()) return give_back(block);
    Awaited awaited{block, {}};
    for (Stream* user : block->users) {
      awaited.events.push_back(std::make_shared<Event>());
      awaited.events.back()->record(*user);
    }
    block->users.clear();
    awaited_.push_back(std::move(awaited));
  }

  // Gives back the blocks that no other stream uses any more, or, with `wait`, all.
  void await_users(bool wait) {
    awaited_.remove_if([&](const Awaited& awaited) {
      for (const auto& event : awaited.events) {
        if (wait) event->synchronize();
        if (!event->query()) return false;
      }
      give_back(awaited.block);
      return true;
    });
  }

  // Work that still uses them ends first. No kernel takes this allocator's lock, so it may be held meanwhile.
  void release_free_segments() {
    for (auto& [owner, blocks] : free_) {
      owner.first->wait();
      for (auto it = blocks.begin(); it != blocks.end();) {
        Block* block = *it;
        if (!block->whole_segment()) {
          ++it;
          continue;
        }
        it = blocks.erase(it);
        munmap(block->data, block->nbytes);
        counts_.reserved -= static_cast<int64_t>(block->nbytes);
        delete block;
      }
    }
  }

  std::recursive_mutex mutex_;
  std::map<std::pair<Stream*, bool>, FreeBlocks> free_;  // by stream, and whether small
  std::unordered_map<const void*, Block*> in_use_;       // by address
  std::list<Awaited> awaited_;
  MemoryCounts counts_;
  int64_t limit_ = kMemoryBytes;
  FreeMemoryCallback callback_ = nullptr;
  bool callback_at_every_miss_ = false;
};

Allocator& instance() {
  static auto* made = new Allocator;  // leaked: tensors may outlive static destruction
  return *made;
}

void Allocator::free_data(void* data) { instance().free(data); }

// Ranges of host memory, by their end.
struct PinnedRanges {
  std::mutex mutex;
  std::map<uintptr_t, uintptr_t> begin_of;
};

PinnedRanges& pinned_ranges() {
  static auto* made = new PinnedRanges;
  return *made;
}

void free_pinned(void* data) {
  unpin(data);
  std::free(data);
}

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    if (nbytes == 0) return {nullptr, c10::DeviceType::CPU};
    void* data = std::aligned_alloc(kPage, round_up(nbytes, kPage));
    TORCH_CHECK(data != nullptr, "the system gave no ", nbytes, " bytes of host memory");
    pin(data, nbytes);
    return {data, data, &free_pinned, c10::DeviceType::CPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, std::size_t count) const override { std::memcpy(to, from, count); }
};

}  // namespace

c10::DeviceAllocator& allocator() { return instance(); }

c10::Allocator& device_allocator() { return instance(); }

char* bytes_of(void* pointer) { return static_cast<char*>(pointer); }

MemoryCounts memory_counts() { return instance().counts(); }
void reset_peak() { instance().resetPeakStats(0); }
void set_memory_limit(int64_t nbytes) { instance().set_limit(nbytes); }
void set_free_memory_callback(FreeMemoryCallback callback, bool every_miss) {
  instance().set_callback(callback, every_miss);
}

c10::Allocator& pinned_allocator() {
  static PinnedAllocator made;
  return made;
}

void pin(const void* address, size_t nbytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const std::lock_guard<std::mutex> lock(pinned_ranges().mutex);
  pinned_ranges().begin_of[begin + nbytes] = begin;
}

void unpin(const void* address) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  const std::lock_guard<std::mutex> lock(pinned_ranges().mutex);
  pinned_ranges().begin_of.erase(pinned_ranges().begin_of.upper_bound(begin));
}

bool is_pinned(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const std::lock_guard<std::mutex> lock(pinned_ranges().mutex);
  const auto range = pinned_ranges().begin_of.upper_bound(at);
  return range != pinned_ranges().begin_of.end() && range->second <= at;
}

namespace {
const bool registered = [] {
  c10::SetAllocator(kDeviceType, &instance());
  return true;
}();
}  // namespace

}  // namespace sim
