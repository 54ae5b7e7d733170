// Moves device memory to and from a file through host memory: copies on a stream, direct I/O from the buffer.
// In: one request. Out: how much was moved. Must not know: transfers, queues, Python.
#pragma once
#include <c10/core/Stream.h>

#include <cstddef>
#include <cstdint>

#include "device.h"
#include "io_path.h"

namespace teraio {

constexpr size_t kStagingBytes = size_t{8} << 20;

// What a thread needs for it, with a buffer of kStagingBytes. Copies are quicker once the buffer is page-locked.
struct Staging {
  char* memory;
  c10::Stream stream;
};

// Over eight bytes of each page; pages count from the transfer's beginning.
uint64_t sample_checksum(const char* memory, size_t nbytes, size_t memory_offset);

// `request` has whole pages and is no larger than the buffer; of its memory `data_nbytes` are there, and the rest of
// the last page is zeros in the file. Throws c10::Error.
Moved move_staged(const Accelerator& accelerator, const Staging& staging, const Request& request, size_t data_nbytes,
                  size_t memory_offset, uint64_t* checksum);

}  // namespace teraio
