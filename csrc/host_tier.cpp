#include "host_tier.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <system_error>
#include <thread>

#include "clock.h"
#include "pages.h"

namespace teraio {
namespace {

constexpr uint64_t kChunk = uint64_t{256} << 20;
constexpr size_t kPopulatingThreads = 8;
constexpr unsigned kMostTimes = 8;

// Takes the pages of the chunks by several threads at once: page-locking takes those that are lacking one after the
// other. A kernel that can't is left to do that.
void populate(const std::vector<std::pair<char*, size_t>>& chunks) {
#ifdef MADV_POPULATE_WRITE
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < chunks.size(); i = next++) {
      ::madvise(chunks[i].first, chunks[i].second, MADV_POPULATE_WRITE);
    }
  };
  std::vector<std::thread> threads;
  const size_t most = std::min<size_t>({chunks.size(), kPopulatingThreads, std::thread::hardware_concurrency()});
  try {
    for (size_t i = 1; i < most; ++i) threads.emplace_back(work);
  } catch (const std::system_error&) {
    // Those that there are do it.
  }
  work();
  for (std::thread& thread : threads) thread.join();
#endif
}

}  // namespace

HostTier::HostTier(const Accelerator& accelerator, uint64_t capacity)
    : accelerator_(accelerator),
      capacity_(capacity / kPage * kPage),
      out_(accelerator.new_stream()),
      in_(accelerator.new_stream()),
      random_(std::random_device{}()) {
  // One range of addresses; its pages are taken as the tier grows.
  void* memory =
      ::mmap(nullptr, capacity_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  ::madvise(memory_, capacity_, MADV_HUGEPAGE);
  // The kernel copies page-locked memory for each process that is forked off, and none of them can use it.
  ::madvise(memory_, capacity_ + kHugePage, MADV_DONTFORK);
}

HostTier::~HostTier() {
  synchronize();
  ::munmap(memory_, capacity_ + kHugePage);
}

void HostTier::synchronize() const {
  accelerator_.synchronize(out_);
  accelerator_.synchronize(in_);
}

std::vector<std::pair<char*, size_t>> HostTier::reserve(uint64_t nbytes) {
  std::vector<std::pair<char*, size_t>> chunks;
  const uint64_t wanted = std::min(capacity_, round_up(nbytes, kChunk));
  while (reserved_ < wanted) {
    const uint64_t size = std::min(kChunk, capacity_ - reserved_);
    chunks.emplace_back(memory_ + reserved_, size);
    extents_.free({reserved_, size});
    reserved_ += size;
  }
  populate(chunks);
  return chunks;
}

std::optional<Extent> HostTier::allocate(uint64_t nbytes) { return extents_.allocate(nbytes); }

bool HostTier::allocate_at(const Extent& extent) { return extents_.allocate_at(extent); }

void HostTier::free(const Extent& extent, bool being_read) {
  extents_.free(extent);
  if (being_read) being_read_.emplace_back(extent, accelerator_.event(in_));
}

HostSpeeds HostTier::measure(const Extent& extent) {
  const size_t nbytes = extent.nbytes / 2;
  const at::DataPtr memory = accelerator_.allocate(extent.nbytes);
  char* begin = static_cast<char*>(memory.get());
  const auto timed = [&](bool writes, bool reads) {
    const int64_t start = now_ns();
    if (writes) copy_out(begin, nbytes, extent.offset);
    if (reads) copy_in(begin + nbytes, nbytes, extent.offset + nbytes);
    synchronize();
    return static_cast<double>(nbytes) / seconds_since(start);
  };
  accelerator_.event(accelerator_.stream()).synchronize();  // older work may still use the memory
  timed(true, true);                                        // touches the pages
  return {timed(false, true), timed(true, false), 2 * timed(true, true)};
}

c10::Event HostTier::write(const char* memory, size_t nbytes, const Extent& extent,
                           const std::vector<c10::Event>& after) {
  for (const c10::Event& event : after) event.block(out_);
  // Once `out_` waits for a read, so does all that it copies later.
  const auto over = [&](const std::pair<Extent, c10::Event>& reading) {
    const auto& [from, read] = reading;
    if (read.query()) return true;
    if (from.offset >= extent.offset + extent.nbytes || extent.offset >= from.offset + from.nbytes) return false;
    read.block(out_);
    return true;
  };
  being_read_.erase(std::remove_if(being_read_.begin(), being_read_.end(), over), being_read_.end());
  copy_out(memory, nbytes, extent.offset);
  return accelerator_.event(out_);
}

c10::Event HostTier::read(char* memory, size_t nbytes, const Extent& extent, const c10::Event& after,
                          const std::optional<c10::Event>& written) {
  after.block(in_);
  if (written) written->block(in_);
  copy_in(memory, nbytes, extent.offset);
  return accelerator_.event(in_);
}

void HostTier::copy_out(const char* memory, size_t nbytes, uint64_t offset) {
  by_chunk(nbytes, offset, [&](char* host, size_t at, size_t n) { accelerator_.copy_out(host, memory + at, n, out_); });
}

void HostTier::copy_in(char* memory, size_t nbytes, uint64_t offset) {
  by_chunk(nbytes, offset, [&](char* host, size_t at, size_t n) { accelerator_.copy_in(memory + at, host, n, in_); });
}

template <class Copy>
void HostTier::by_chunk(size_t nbytes, uint64_t offset, const Copy& copy) {
  // The same bytes again and again are a copy that takes longer.
  for (auto times = stressed_ ? 1 + random_() % kMostTimes : 1; times > 0; --times) {
    for (size_t at = 0, n = 0; at < nbytes; at += n) {
      n = std::min<size_t>(nbytes - at, kChunk - (offset + at) % kChunk);
      copy(memory_ + offset + at, at, n);
    }
  }
}

}  // namespace teraio
