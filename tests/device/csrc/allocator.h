// Device memory of the simulated device: a caching allocator that reuses a block as soon as it is freed, in the order
// of the stream it was allocated on.
//
// In: sizes, the calling thread's current stream. Out: memory, counts. Must not know: tensors.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>

namespace sim {

using FreeMemoryCallback = bool (*)();

struct MemoryCounts {
  int64_t allocated = 0;  // bytes of blocks in use, rounded up
  int64_t peak = 0;       // the most that `allocated` was since reset_peak()
  int64_t reserved = 0;   // bytes of blocks in use or free, but not given back to the system
};

c10::DeviceAllocator& allocator();

MemoryCounts memory_counts();
void reset_peak();
// What the device has: as much as tests may need, so that one that leaks does not take the machine's memory.
constexpr int64_t kMemoryBytes = int64_t{4} << 30;

// Bytes that this process may reserve, at most kMemoryBytes; -1: all.
void set_memory_limit(int64_t nbytes);
// Called with the allocator's (recursive) lock held when no free block fits and a new one would break the limit, or,
// with `every_miss`, whenever no free block fits. If it returns true, a free block is looked for again.
void set_free_memory_callback(FreeMemoryCallback callback, bool every_miss);

// Host memory from which and into which copies may be asynchronous.
c10::Allocator& pinned_allocator();
void pin(const void* address, size_t nbytes);
void unpin(const void* address);
bool is_pinned(const void* address);

}  // namespace sim
