#include "io_path.h"

#include <unistd.h>

#include <cerrno>
#include <utility>

namespace teraio {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

Moved move_by_posix(const Request& r) {
  for (;;) {
    const off_t where = static_cast<off_t>(r.offset);
    const ssize_t n = r.write ? ::pwrite(r.fd, r.memory, r.nbytes, where) : ::pread(r.fd, r.memory, r.nbytes, where);
    if (n >= 0) return {static_cast<size_t>(n), 0, ""};
    if (errno != EINTR) return {0, errno, ""};
  }
}

}  // namespace

Path posix_path() { return {&move_by_posix, 8 * kMiB, kMiB}; }

Moved move_all(const Path& path, const Request& request) {
  Request left = request;
  while (left.nbytes > 0) {
    Moved moved = path.move(left);
    // Nothing moved without an error: the file ends before the data that was written to it, or the drive is full.
    if (moved.error == 0 && moved.nbytes == 0) moved.error = left.write ? ENOSPC : ENODATA;
    left.memory += moved.nbytes;
    left.offset += moved.nbytes;
    left.nbytes -= moved.nbytes;
    if (moved.error != 0) return {request.nbytes - left.nbytes, moved.error, std::move(moved.text)};
  }
  return {request.nbytes, 0, ""};
}

}  // namespace teraio
