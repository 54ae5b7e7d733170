#include "pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <new>

namespace teraio {
namespace {

// Below this, malloc's heap serves: fewer mappings, and no huge page to gain.
constexpr size_t kPooled = size_t{128} << 10;
// Moving fewer small pages at once would cost as much as zeroing new ones.
constexpr size_t kGranule = size_t{256} << 10;
// What remains of cut units and is smaller would only make searches longer.
constexpr size_t kWorthKeeping = size_t{64} << 10;

// The size of the first unit of so many bytes.
size_t first_unit(size_t nbytes) { return nbytes >= kHugePage ? kHugePage : std::min(nbytes, kGranule); }

void* map_anywhere(size_t nbytes) {
  return mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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
// units of others. mremap takes a range of one mapping only, so the units of a piece, each of which is within one,
// follow from its size: whole huge pages, then granules, then what remains. A unit may be cut into smaller ones. A piece
// of 2 MiB or more begins at a huge page. Each unit may come to be a mapping of its own, of which Linux allows 65,530 by
// default; when there are too many, mremap fails and new pages serve.
//
// Where memory is plenty, nothing need move: a few new pages, and each size finds pieces of its own in every step.
void* PagePool::take(size_t nbytes, size_t new_bytes) {
  if (nbytes < kPooled) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kPage, nbytes) != 0) throw std::bad_alloc();
    return memory;
  }
  // Mostly the one given back last, which may still be in the processor's cache.
  if (const auto after = free_.upper_bound(nbytes); after != free_.begin() && std::prev(after)->first == nbytes) {
    const auto fit = std::prev(after);
    char* memory = fit->second.memory;
    free_.erase(fit);
    cached_ -= nbytes;
    return memory;
  }
  char* memory = map_pages(nbytes);
  if (nbytes <= new_bytes) return memory;
  size_t missing = kHugePage + 1;  // units of this size or more there are none
  for (size_t done = 0, unit; done < nbytes; done += unit) {
    unit = first_unit(nbytes - done);
    if (unit < missing && !move_unit(memory + done, unit)) missing = unit;
  }
  return memory;
}

char* PagePool::map_pages(size_t nbytes) {
  const size_t slack = nbytes >= kHugePage ? kHugePage : 0;
  void* raw = map_anywhere(nbytes + slack);
  if (raw == MAP_FAILED) {  // too many mappings, perhaps
    trim(cached_);
    raw = map_anywhere(nbytes + slack);
    if (raw == MAP_FAILED) throw std::bad_alloc();
  }
  char* start = static_cast<char*>(raw);
  if (slack == 0) return start;
  char* aligned = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(start), kHugePage));
  const size_t head = static_cast<size_t>(aligned - start);
  if (head > 0) munmap(start, head);
  if (slack > head) munmap(aligned + nbytes, slack - head);
  madvise(aligned, nbytes, MADV_HUGEPAGE);
  return aligned;
}

bool PagePool::move_unit(char* to, size_t nbytes) {
  const auto unit = unit_of(nbytes);
  if (!unit) return false;
  const auto [whole, piece] = *unit->piece;
  char* from = piece.memory + unit->offset;
  if (!move_pages(from, to, nbytes)) return false;
  free_.erase(unit->piece);
  cached_ -= whole;
  const size_t spare = unit->nbytes - nbytes;
  const size_t after = whole - unit->offset - unit->nbytes;
  if (unit->offset > 0) keep(piece, unit->offset);
  keep_if_worth({from + unit->nbytes, piece.stamp}, after);
  keep_if_worth({from + nbytes, piece.stamp}, spare);
  return true;
}

// The smallest kind that is enough, and of that the one given back first; of what remains behind granules the smallest.
std::optional<PagePool::Unit> PagePool::unit_of(size_t least) {
  auto rest = free_.end(), granule = free_.end();
  for (auto piece = free_.begin(); least <= kGranule && piece != free_.end(); ++piece) {
    const size_t spare = piece->first % kGranule;
    if (spare >= least && (rest == free_.end() || spare < rest->first % kGranule)) rest = piece;
    if (piece->first % kHugePage < kGranule) continue;
    if (granule == free_.end() || piece->second.stamp < granule->second.stamp) granule = piece;
  }
  if (rest != free_.end()) {
    const size_t spare = rest->first % kGranule;
    return Unit{rest, rest->first - spare, spare};
  }
  if (granule != free_.end()) return Unit{granule, granule->first / kHugePage * kHugePage, kGranule};
  const auto huge = oldest(kHugePage);
  if (huge == free_.end()) return std::nullopt;
  return Unit{huge, 0, kHugePage};
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

void PagePool::keep_if_worth(Piece piece, size_t nbytes) {
  if (nbytes >= kWorthKeeping) {
    keep(piece, nbytes);
  } else if (nbytes > 0) {
    munmap(piece.memory, nbytes);
  }
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
