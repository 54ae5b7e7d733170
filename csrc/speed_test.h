// What one spill file does by one path: rates and latency, measured.
// In: a path, an open file with space reserved. Out: a FolderSpeed. Must not know: striping, queues.
#pragma once
#include <cstddef>
#include <mutex>
#include <vector>

#include "device.h"
#include "io_path.h"
#include "staging.h"

namespace teraio {

struct FolderSpeed {
  double read_bytes_per_s = 0;
  double write_bytes_per_s = 0;
  double mixed_bytes_per_s = 0;
  double latency_s = 0;
};

// Memory that a speed test uses again and again: it is to tell about the drive, not to need much itself.
struct TestMemory {
  char* memory = nullptr;  // null: pages of its own
  size_t nbytes = 0;
  c10::Device device{c10::kCPU};
  char* staging = nullptr;  // for device memory that is staged: two buffers for each thread
};

// Staging as a path, for speed tests: it lends its buffers out to whoever moves a request.
class StagedPath {
 public:
  StagedPath(const TestMemory& test, size_t threads);
  const Path& path() const { return path_; }

 private:
  Moved move(const Request& request);

  const Accelerator accelerator_;
  std::mutex mutex_;
  std::vector<Staging> free_;
  Path path_;
};

// Moves `nbytes` (a multiple of the path's request) with so many threads to and from the file's beginning.
// `failed` says what went wrong, if anything.
FolderSpeed test_speed(const Path& path, size_t folder, int fd, size_t nbytes, size_t threads, TestMemory test,
                       Moved* failed);

}  // namespace teraio
