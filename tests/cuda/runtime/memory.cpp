#include "memory.h"

#include "stream.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <iterator>

namespace cuda_double {
namespace {

// Expandable segments reserve more addresses than there is memory, each time.
constexpr size_t kAddresses = size_t{1} << 40;
constexpr size_t kDefaultBytes = size_t{4} << 30;

size_t bytes_wanted() {
  const char* text = std::getenv("CUDA_DOUBLE_BYTES");
  return text == nullptr ? kDefaultBytes : std::strtoull(text, nullptr, 10);
}

void* pages(void* where, size_t nbytes, int protection) {
  const int fixed = where == nullptr ? 0 : MAP_FIXED;
  void* made = mmap(where, nbytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  if (made == MAP_FAILED) std::abort();
  return made;
}

}  // namespace

Memory::Memory(size_t total_bytes) : total_(total_bytes) {
  const auto both = reinterpret_cast<uintptr_t>(pages(nullptr, 2 * kAddresses + kGranularity, PROT_NONE));
  begin_ = (both + kGranularity - 1) / kGranularity * kGranularity;
  free_[begin_] = kAddresses;
}

uintptr_t Memory::reserve(size_t nbytes, size_t alignment) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& [begin, size] : free_) {
    const uintptr_t at = (begin + alignment - 1) / alignment * alignment;
    if (at + nbytes > begin + size) continue;
    const uintptr_t range = begin, end = begin + size;
    free_.erase(range);
    if (at > range) free_[range] = at - range;
    if (end > at + nbytes) free_[at + nbytes] = end - at - nbytes;
    return at;
  }
  return 0;
}

void Memory::give_back(uintptr_t address, size_t nbytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto here = free_.emplace(address, nbytes).first;
  if (const auto after = std::next(here); after != free_.end() && here->first + here->second == after->first) {
    here->second += after->second;
    free_.erase(after);
  }
  if (here == free_.begin()) return;
  const auto before = std::prev(here);
  if (before->first + before->second != here->first) return;
  before->second += here->second;
  free_.erase(here);
}

bool Memory::take(size_t nbytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (nbytes > total_ - taken_) return false;
  taken_ += nbytes;
  return true;
}

void Memory::release(size_t nbytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  taken_ -= nbytes;
}

void Memory::map(uintptr_t address, size_t nbytes) {
  void* made = pages(view(reinterpret_cast<void*>(address)), nbytes, PROT_READ | PROT_WRITE);
  if (pace() == 0) std::memset(made, 0xFF, nbytes);
}

void Memory::unmap(uintptr_t address, size_t nbytes) {
  pages(view(reinterpret_cast<void*>(address)), nbytes, PROT_NONE);
}

bool Memory::contains(const void* address) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return at >= begin_ && at < begin_ + kAddresses;
}

void* Memory::view(const void* address) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return reinterpret_cast<void*>(contains(address) ? at + kAddresses : at);
}

size_t Memory::free_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return total_ - taken_;
}

Memory& memory() {
  static auto* made = new Memory(bytes_wanted());
  return *made;
}

}  // namespace cuda_double

// Host memory that is taken only for copies that a paced device leaves out is not taken.
extern "C" int madvise(void* address, size_t nbytes, int advice) noexcept {
  if (cuda_double::pace() > 0 && advice == MADV_POPULATE_WRITE) return 0;
  return static_cast<int>(syscall(SYS_madvise, address, nbytes, advice));
}
