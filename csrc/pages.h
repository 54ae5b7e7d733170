// Memory for large CPU storages: page-aligned (so that O_DIRECT needs no copy), on huge pages where large.
// In: sizes. Out: memory, kept for reuse after it is given back. Must not know: storages, budgets, files.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

namespace teraio {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

inline size_t round_up(size_t nbytes, size_t unit) { return (nbytes + unit - 1) / unit * unit; }

// Not thread-safe: the engine calls it under its mutex.
class PagePool {
 public:
  // `nbytes` is a multiple of kPage. A free piece of that size serves, else new pages if they are within `new_bytes`, else
  // pages of other pieces. Throws std::bad_alloc.
  void* take(size_t nbytes, size_t new_bytes = 0);
  void give(void* memory, size_t nbytes);

  // Bytes given back and kept for reuse; they still count as memory of the process.
  size_t cached() const { return cached_; }
  // Returns at least `nbytes` of them to the system, or all there are.
  void trim(size_t nbytes);

 private:
  struct Piece {
    char* memory;
    uint64_t stamp;  // when it was given back
  };
  using Pieces = std::multimap<size_t, Piece>;
  // A unit of a free piece.
  struct Unit {
    Pieces::iterator piece;
    size_t offset, nbytes;
  };

  void keep(Piece piece, size_t nbytes);
  void keep_if_worth(Piece piece, size_t nbytes);
  Pieces::iterator oldest(size_t least);  // of those of at least so many bytes
  std::optional<Unit> unit_of(size_t least);
  // Moves free pages to `to`, where pages not touched yet are mapped; they stay there if there are none.
  bool move_unit(char* to, size_t nbytes);
  char* map_pages(size_t nbytes);

  Pieces free_;
  size_t cached_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace teraio
