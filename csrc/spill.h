// The spill space: one logical range of bytes, striped over one unlinked file per SSD folder, and the
// threads that read and write it.
// In: memory ranges and extents. Out: finished transfers. Must not know: storages, budgets, plans, Python.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "device.h"
#include "encoding.h"
#include "extents.h"
#include "io_path.h"
#include "speed_test.h"
#include "staging.h"
#include "throughput.h"
#include "transfer.h"

namespace teraio {

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
  // How host memory moves; by posix_path() unless told otherwise. Call before start().
  void set_host_path(Path path) { host_path_ = std::move(path); }
  // How memory of devices moves to and from the folders that `takes` names; by staging to all others.
  void set_device_path(Path path, const std::vector<bool>& takes);
  void forget_device_path();
  // What transfers with an encoding are encoded by: a buffer for each of encoding_threads(). Call before start().
  void set_codec(Codec codec) { codec_ = std::move(codec); }
  size_t encoding_threads() const;
  // Runs reads and writes of `nbytes` over the folder's file. Throws SpillError. Call before start().
  FolderSpeed measure(size_t folder, size_t nbytes, const TestMemory& test);
  // Stripes over the folders in proportion to `weights`, and starts the I/O threads. Device memory moves through
  // host memory of theirs, one buffer a thread.
  void start(const std::vector<unsigned>& weights, const Accelerator* accelerator);
  // Those buffers; copies are quicker once they are page-locked.
  std::vector<std::pair<char*, size_t>> staging_memory() const;
  // Waits for transfers that run, drops those that have not begun, ends the threads, closes the files.
  void stop();

  // Reserves disk space for a logical range of `nbytes`; never shrinks. Throws SpillError.
  void reserve(uint64_t nbytes);
  uint64_t reserved() const { return reserved_; }

  // Extents are not thread-safe: the engine calls these under its mutex. allocate() grows the space.
  Extent allocate(uint64_t nbytes);
  bool allocate_at(const Extent& extent) { return extents_.allocate_at(extent); }
  void free(const Extent& extent) { extents_.free(extent); }

  // True on a thread that moves bytes: it must not wait for others that do.
  static bool on_io_thread();

  // The folders that hold a transfer's extent, for messages.
  std::string folders_of(Transfer* transfer) const;

  // Whether transfers may take Python's lock.
  bool needs_python() const;
  void submit(Transfer* transfer, bool urgent);
  // Delays every request at random by up to this long: for tests that seek races.
  void set_delay(unsigned max_us) { max_delay_us_ = max_us; }
  // Moves what of it has not begun to the front of the queue.
  void promote(Transfer* transfer);
  // What the folders together did since this was last asked.
  Work take_work();
  // Has a write that would take Python's lock made without it, before all others; false if it has begun.
  bool take_from_python(Transfer* transfer);

 private:
  struct File {
    int fd = -1;
    std::string path;
    bool direct = false;
    bool by_device_path = false;
    uint64_t reserved = 0;
  };
  struct Piece {
    Transfer* transfer;
    size_t number;  // in the transfer
    size_t file;
    uint64_t file_offset;
    size_t memory_offset;
    size_t nbytes;
  };
  struct Channel {
    std::deque<Piece> queue;
    std::condition_variable work;
    std::optional<c10::Stream> codec_stream;  // one for all of its threads, for memory stays with its stream
  };
  // What a thread has to itself.
  struct Worker {
    std::optional<Staging> staging;  // for device memory
    char* buffer = nullptr;          // the codec's
    std::optional<c10::Stream> codec_stream;
  };
  // What a piece really moves: whole pages of the transfer's memory, or of the codec's buffer.
  struct Range {
    char* memory;
    size_t nbytes;
    size_t data;  // of them; behind lies memory of somebody else
    bool staged;
  };

  void run(Channel& channel, const Worker& worker);
  size_t move(const Piece& piece, const Worker& worker);  // bytes that were moved
  Moved move_plain(const Piece& piece, const Worker& worker, uint64_t* checksum) const;
  Moved move_encoded(const Piece& piece, const Worker& worker, uint64_t* checksum) const;
  Moved move_range(const Piece& piece, const Range& range, const Worker& worker, uint64_t* checksum) const;
  Moved move_device_range(const Piece& piece, const Range& range, const Worker& worker, uint64_t* checksum) const;
  bool staged(const Transfer& transfer, size_t file, size_t nbytes) const;
  size_t largest_request(const Transfer& transfer, size_t file) const;
  void start_threads(Channel& channel, size_t count);
  Channel& channel_of(const Transfer& transfer);
  void reserve_file(File& file, uint64_t nbytes);
  std::vector<Piece> pieces_of(Transfer* transfer) const;

  std::function<void(Transfer*)> done_;
  std::vector<File> files_;
  Path host_path_ = posix_path();
  std::optional<Path> device_path_;
  std::optional<Codec> codec_;
  uint64_t stripe_unit_ = 0;
  std::vector<size_t> pattern_;        // file of each stripe unit, repeated
  std::vector<uint64_t> unit_rank_;    // how many earlier units of the pattern lie in the same file
  std::vector<uint64_t> pattern_units_;  // units of the pattern per file
  uint64_t reserved_ = 0;
  ExtentMap extents_;

  std::mutex mutex_;
  Channel reads_, writes_, native_writes_;
  bool stopping_ = false;
  Throughput throughput_;
  std::atomic<unsigned> max_delay_us_{0};
  const Accelerator* accelerator_ = nullptr;
  std::vector<char*> staging_;
  std::vector<std::thread> threads_;
};

}  // namespace teraio
