// The spill space: one logical range of bytes, striped over one unlinked file per SSD folder, and the
// threads that read and write it.
// In: memory ranges and extents. Out: finished transfers. Must not know: storages, budgets, plans, Python.
#pragma once
#include <c10/core/Device.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io_path.h"
#include "speed_test.h"

namespace teraio {

struct Extent {
  uint64_t offset = 0;
  uint64_t nbytes = 0;
};

// One memory range on its way to or from one extent. Whoever submits it owns it, the memory and the extent,
// and keeps all three until `done` has been called for it.
struct Transfer {
  enum class Direction { kRead, kWrite };
  Direction direction = Direction::kRead;
  char* memory = nullptr;
  c10::Device device{c10::kCPU};  // where the memory is
  Extent extent;
  void* user = nullptr;
  // What has to be over before the memory may be touched: an I/O thread calls it, without the GIL, before the
  // first byte of each piece. So it runs several times, at once too.
  std::function<void()> before;

  // Filled in by the spill space; read them after the transfer is done.
  int error = 0;           // errno; 0 when all bytes were moved
  std::string error_text;  // what the path said about it; empty for one that has nothing to add
  std::string error_path;
  uint64_t error_offset = 0;
  size_t pieces_left = 0;
  // Over a sample of the bytes, eight of each page: tells a file that lost or mixed up what was written to it.
  // 0 for memory that the CPU can't read.
  uint64_t checksum = 0;

  // The error in words, with its errno.
  std::string reason() const;
};

class SpillSpace {
 public:
  // `done` runs on an I/O thread, once per transfer.
  explicit SpillSpace(std::function<void(Transfer*)> done);
  ~SpillSpace();
  SpillSpace(const SpillSpace&) = delete;
  SpillSpace& operator=(const SpillSpace&) = delete;

  // Opens a private, already unlinked file in the folder. Throws SpillError.
  void add_folder(const std::string& path);
  size_t folders() const { return files_.size(); }
  // True where the file's reads and writes bypass the page cache.
  bool direct(size_t folder) const { return files_.at(folder).direct; }
  // For paths that open the file a second time; it has no name.
  int fd(size_t folder) const { return files_.at(folder).fd; }
  // Host memory takes posix_path() unless told otherwise, memory of devices has none at first. Call before start().
  void set_host_path(Path path) { host_path_ = std::move(path); }
  void set_device_path(Path path) { device_path_ = std::move(path); }
  // Runs reads and writes of `nbytes` over the folder's file, by the path that such memory takes. Throws SpillError.
  // Call before start().
  FolderSpeed measure(size_t folder, size_t nbytes, TestMemory test = {});
  // Stripes over the folders in proportion to `weights`, and starts the I/O threads.
  void start(const std::vector<unsigned>& weights);
  // Waits for transfers that run, drops those that have not begun, ends the threads, closes the files.
  void stop();

  // Reserves disk space for a logical range of `nbytes`; never shrinks. Throws SpillError.
  void reserve(uint64_t nbytes);
  uint64_t reserved() const { return reserved_; }

  // Extents are not thread-safe: the engine calls these under its mutex. allocate() grows the space.
  Extent allocate(uint64_t nbytes);
  bool allocate_at(const Extent& extent);
  void free(const Extent& extent);

  // The folders that hold a transfer's extent, for messages.
  std::string folders_of(Transfer* transfer) const;

  void submit(Transfer* transfer, bool urgent);
  // Delays every request at random by up to this long: for tests that seek races.
  void set_delay(unsigned max_us) { max_delay_us_ = max_us; }
  // True on a thread that moves bytes: it must not wait for others that do.
  static bool on_io_thread();
  // Moves what of it has not begun to the front of the queue.
  void promote(Transfer* transfer);

 private:
  struct File {
    int fd = -1;
    std::string path;
    bool direct = false;
    uint64_t reserved = 0;
  };
  struct Piece {
    Transfer* transfer;
    size_t file;
    uint64_t file_offset;
    size_t memory_offset;
    size_t nbytes;
  };
  struct Channel {
    std::deque<Piece> queue;
    std::condition_variable work;
  };

  void run(Channel& channel);
  void move(const Piece& piece);
  Moved move_bytes(const Piece& piece) const;
  const Path& path_of(c10::Device device) const { return device.is_cpu() ? host_path_ : device_path_; }
  void reserve_file(File& file, uint64_t nbytes);
  std::vector<Piece> pieces_of(Transfer* transfer) const;

  std::function<void(Transfer*)> done_;
  std::vector<File> files_;
  Path host_path_ = posix_path();
  Path device_path_ = no_path();
  uint64_t stripe_unit_ = 0;
  std::vector<size_t> pattern_;        // file of each stripe unit, repeated
  std::vector<uint64_t> unit_rank_;    // how many earlier units of the pattern lie in the same file
  std::vector<uint64_t> pattern_units_;  // units of the pattern per file
  uint64_t reserved_ = 0;
  std::map<uint64_t, uint64_t> free_;  // offset -> nbytes, neighbours merged

  std::mutex mutex_;
  Channel reads_, writes_;
  bool stopping_ = false;
  std::atomic<unsigned> max_delay_us_{0};
  std::vector<std::thread> threads_;
};

}  // namespace teraio
