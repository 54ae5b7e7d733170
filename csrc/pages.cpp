#include "pages.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace teraio {
namespace {

// Below this, malloc's heap serves: fewer mappings, and no huge page to gain.
constexpr size_t kPooled = size_t{128} << 10;
// What remains of cut pages and is smaller would only make searches longer.
constexpr size_t kWorthKeeping = size_t{64} << 10;

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

bool move_pages(char* from, char* to, size_t nbytes) {
  if (mremap(from, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to) return true;
  // A failure (too many mappings, say) may have unmapped the target already.
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  if (mmap(to, nbytes, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) throw std::bad_alloc();
  return false;
}

}  // namespace

// [Note: pages change hands]
// Programs need other sizes in their forward pass than in the optimizer's step, and a new mapping costs the kernel
// zeroing all its pages, ten times what moving them costs. So what has no piece of its size is put together from
// the pages of others: whole huge pages one by one, and what a size has beyond them (small pages) from another
// piece's, or else from a huge page that is cut. A piece of 2 MiB or more begins at a huge page, and mremap takes a
// range of one mapping only: huge pages and ends are what stays in one.
void* PagePool::take(size_t nbytes) {
  if (nbytes < kPooled) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kPage, nbytes) != 0) throw std::bad_alloc();
    return memory;
  }
  if (const auto fit = free_.find(nbytes); fit != free_.end()) {
    char* memory = fit->second.memory;
    free_.erase(fit);
    cached_ -= nbytes;
    return memory;
  }
  char* memory = map_pages(nbytes);
  const size_t end_bytes = nbytes % kHugePage;
  char* end = memory + (nbytes - end_bytes);
  bool more = true;
  for (char* to = memory; more && to < end; to += kHugePage) more = move_huge_page(to);
  if (end_bytes > 0) move_end(end, end_bytes);
  return memory;
}

bool PagePool::move_huge_page(char* to) {
  const auto from = oldest(kHugePage);
  if (from == free_.end() || !move_pages(from->second.memory, to, kHugePage)) return false;
  const auto [nbytes, piece] = *from;
  free_.erase(from);
  cached_ -= nbytes;
  if (nbytes > kHugePage) keep({piece.memory + kHugePage, piece.stamp}, nbytes - kHugePage);
  return true;
}

void PagePool::move_end(char* to, size_t nbytes) {
  auto from = free_.end();
  for (auto piece = free_.begin(); piece != free_.end(); ++piece) {
    const size_t spare = piece->first % kHugePage;
    if (spare >= nbytes && (from == free_.end() || spare < from->first % kHugePage)) from = piece;
  }
  const bool cut = from == free_.end();
  if (cut) from = oldest(kHugePage);
  if (from == free_.end()) return;
  const auto [whole, piece] = *from;
  const size_t huge = whole / kHugePage * kHugePage;
  char* source = piece.memory + (cut ? 0 : huge);
  const size_t spare = (cut ? kHugePage : whole - huge) - nbytes;
  if (!move_pages(source, to, nbytes)) return;
  free_.erase(from);
  cached_ -= whole;
  if (spare >= kWorthKeeping) {
    keep({source + nbytes, piece.stamp}, spare);
  } else if (spare > 0) {
    munmap(source + nbytes, spare);
  }
  const size_t rest = cut ? whole - kHugePage : huge;
  if (rest > 0) keep({piece.memory + (cut ? kHugePage : 0), piece.stamp}, rest);
}

void PagePool::give(void* memory, size_t nbytes) {
  if (nbytes < kPooled) {
    std::free(memory);
  } else {
    keep({static_cast<char*>(memory), clock_++}, nbytes);
  }
}

void PagePool::keep(Piece piece, size_t nbytes) {
  free_.emplace(nbytes, piece);
  cached_ += nbytes;
}

void PagePool::trim(size_t nbytes) {
  const size_t until = cached_ > nbytes ? cached_ - nbytes : 0;
  while (cached_ > until) {
    const auto piece = oldest(0);
    munmap(piece->second.memory, piece->first);
    cached_ -= piece->first;
    free_.erase(piece);
  }
}

PagePool::Pieces::iterator PagePool::oldest(size_t least) {
  auto found = free_.end();
  for (auto piece = free_.lower_bound(least); piece != free_.end(); ++piece) {
    if (found == free_.end() || piece->second.stamp < found->second.stamp) found = piece;
  }
  return found;
}

}  // namespace teraio
