// The host tier: host memory that device storages move to and come back from, by copies on streams of their own.
// In: memory ranges and extents. Out: finished transfers, and events after which data is there. Must not know:
// storages, budgets, plans.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "device.h"
#include "extents.h"
#include "transfer.h"

namespace teraio {

struct HostSpeeds {
  double read_bytes_per_s = 0;
  double write_bytes_per_s = 0;
  double mixed_bytes_per_s = 0;  // both together while both run
};

class HostTier {
 public:
  // Of `capacity` bytes at most. `done` runs on a thread of the tier's own, once per write.
  HostTier(const Accelerator& accelerator, uint64_t capacity, std::function<void(Transfer*)> done);
  ~HostTier();
  HostTier(const HostTier&) = delete;
  HostTier& operator=(const HostTier&) = delete;

  // Grows the tier to at least `nbytes`, in whole chunks; gives the new ones. Copies run beside the device's work
  // only once a chunk is page-locked, which is the caller's task. No copy goes beyond a chunk.
  std::vector<std::pair<char*, size_t>> reserve(uint64_t nbytes);
  // What copies of so many bytes do.
  HostSpeeds measure(size_t nbytes);

  // Extents are not thread-safe: the engine calls these under its mutex. Nothing is given when none is free.
  std::optional<Extent> allocate(uint64_t nbytes);
  bool allocate_at(const Extent& extent);
  // The extent is free once `read`, where there is one, has come to pass.
  void free(const Extent& extent, std::optional<c10::Event> read);

  // Copies device memory to an extent after the transfer's events.
  void write(Transfer* transfer, bool urgent);
  // Starts to copy an extent back, after the transfer's events; the result says when it is there.
  c10::Event read(const Transfer& transfer);
  // Delays every write at random by up to this long: for tests that seek races.
  void set_delay(unsigned max_us) { max_delay_us_ = max_us; }

 private:
  void run();
  void copy(const Transfer& transfer, c10::Stream stream);

  const Accelerator& accelerator_;
  const uint64_t capacity_;
  std::function<void(Transfer*)> done_;
  char* memory_;
  uint64_t reserved_ = 0;
  void free_what_was_read();

  ExtentMap extents_;
  std::vector<std::pair<Extent, c10::Event>> being_read_;
  c10::Stream out_, in_;

  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Transfer*> queue_;
  bool stopping_ = false;
  std::atomic<unsigned> max_delay_us_{0};
  std::thread thread_;
};

}  // namespace teraio
