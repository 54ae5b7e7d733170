#include "staging.h"

#include <cstring>

#include "pages.h"

namespace teraio {

uint64_t sample_checksum(const char* memory, size_t nbytes, size_t memory_offset) {
  uint64_t sum = 0;
  for (size_t page = 0; page < nbytes; page += kPage) {
    const uint64_t number = (memory_offset + page) / kPage;
    uint64_t word = 0;
    // Another cache line of each page, so that what repeats page by page is seen too.
    std::memcpy(&word, memory + page + number % (kPage / 64) * 64, sizeof word);
    word = (word ^ number) * 0x9E3779B97F4A7C15ull;
    sum += word ^ (word >> 29);
  }
  return sum;
}

Moved move_staged(const Accelerator& accelerator, const Staging& staging, const Request& request, size_t data_nbytes,
                  size_t memory_offset, uint64_t* checksum) {
  Request staged = request;
  staged.memory = staging.memory;
  if (request.write) {
    accelerator.copy_out(staging.memory, request.memory, data_nbytes, staging.stream);
    accelerator.synchronize(staging.stream);
    std::memset(staging.memory + data_nbytes, 0, request.nbytes - data_nbytes);
    *checksum = sample_checksum(staging.memory, request.nbytes, memory_offset);
    return move_all(posix_path(), staged);
  }
  Moved moved = move_all(posix_path(), staged);
  if (moved.error != 0) return moved;
  *checksum = sample_checksum(staging.memory, request.nbytes, memory_offset);
  accelerator.copy_in(request.memory, staging.memory, data_nbytes, staging.stream);
  accelerator.synchronize(staging.stream);
  return moved;
}

}  // namespace teraio
