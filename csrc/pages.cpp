#include "pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace teraio {
namespace {

// Below this, malloc's heap serves: fewer mappings, and no huge page to gain.
constexpr size_t kPooled = size_t{1} << 20;

char* map_pages(size_t nbytes) {
  const size_t slack = nbytes >= kHugePage ? kHugePage : 0;
  void* raw = mmap(nullptr, nbytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  char* start = static_cast<char*>(raw);
  if (slack == 0) return start;
  char* aligned = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(start), kHugePage));
  const size_t head = static_cast<size_t>(aligned - start);
  if (head > 0) munmap(start, head);
  if (slack > head) munmap(aligned + nbytes, slack - head);
  madvise(aligned, nbytes, MADV_HUGEPAGE);
  return aligned;
}

}  // namespace

void* PagePool::take(size_t nbytes) {
  if (nbytes < kPooled) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kPage, nbytes) != 0) throw std::bad_alloc();
    return memory;
  }
  // Reusing faulted pages saves the kernel zeroing new ones, so a larger piece is split rather than left.
  const auto fit = free_.lower_bound(nbytes);
  if (fit == free_.end()) return map_pages(nbytes);
  char* memory = fit->second.memory;
  const size_t whole = fit->first;
  free_.erase(fit);
  cached_ -= whole;
  char* end = memory + whole;
  char* rest = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(memory + nbytes), kHugePage));
  const bool keep_rest = rest < end && static_cast<size_t>(end - rest) >= kPooled;
  char* gap_end = keep_rest ? rest : end;
  if (gap_end > memory + nbytes) munmap(memory + nbytes, static_cast<size_t>(gap_end - (memory + nbytes)));
  if (keep_rest) keep(rest, static_cast<size_t>(end - rest));
  return memory;
}

void PagePool::give(void* memory, size_t nbytes) {
  if (nbytes < kPooled) {
    std::free(memory);
  } else {
    keep(static_cast<char*>(memory), nbytes);
  }
}

void PagePool::keep(char* memory, size_t nbytes) {
  free_.emplace(nbytes, Free{memory, clock_++});
  cached_ += nbytes;
}

void PagePool::trim(size_t nbytes) {
  size_t returned = 0;
  while (returned < nbytes && !free_.empty()) {
    const auto oldest = std::min_element(free_.begin(), free_.end(), [](const auto& a, const auto& b) {
      return a.second.stamp < b.second.stamp;
    });
    munmap(oldest->second.memory, oldest->first);
    returned += oldest->first;
    cached_ -= oldest->first;
    free_.erase(oldest);
  }
}

}  // namespace teraio
