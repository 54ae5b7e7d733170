// Paths: the ways in which bytes get from memory to a file and back.
// In: requests for one contiguous range. Out: how much was moved, or why not. Must not know: transfers, queues.
#pragma once
#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace teraio {

struct Request {
  size_t folder = 0;  // by the spill space's count
  int fd = -1;
  bool write = false;
  char* memory = nullptr;
  c10::Device device{c10::kCPU};
  size_t nbytes = 0;
  uint64_t offset = 0;  // in the file
};

struct Moved {
  size_t nbytes = 0;  // moved; less than asked for is no error
  int error = 0;      // errno; 0 when what was moved is right
  std::string text;   // what the path has to say about the error, beyond its errno
};

struct Path {
  // Called on I/O threads, by several at once, without locks and without the GIL. Throws nothing.
  std::function<Moved(const Request&)> move;
  size_t request = 0;      // bytes of its largest request
  size_t stripe_unit = 0;  // striping over files finer than this costs more than it gains
};

// pread and pwrite, for host memory.
Path posix_path();

// Moves all bytes, continuing short moves. In the result, `nbytes` is how far it came.
Moved move_all(const Path& path, const Request& request);

}  // namespace teraio
