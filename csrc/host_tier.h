// The host tier: host memory that device storages move to and come back from, by copies on streams of their own.
// In: memory ranges, extents and events. Out: events after which the bytes are there. Must not know: storages, budgets,
// plans.
//
// Copies are issued at once and follow the device's order, whatever the host has seen of it. Nothing here is thread-safe:
// the engine calls it under its mutex, but for measure(), which works on an extent of its own.
#pragma once
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "device.h"
#include "extents.h"

namespace teraio {

struct HostSpeeds {
  double read_bytes_per_s = 0;
  double write_bytes_per_s = 0;
  double mixed_bytes_per_s = 0;  // both together while both run
};

class HostTier {
 public:
  // Of `capacity` bytes at most.
  HostTier(const Accelerator& accelerator, uint64_t capacity);
  ~HostTier();
  HostTier(const HostTier&) = delete;
  HostTier& operator=(const HostTier&) = delete;

  // Grows the tier to at least `nbytes`, in whole chunks; gives the new ones. Copies run beside the device's work
  // only once a chunk is page-locked, which is the caller's task. No copy goes beyond a chunk.
  std::vector<std::pair<char*, size_t>> reserve(uint64_t nbytes);
  // What copies between the two halves of an extent and the device do.
  HostSpeeds measure(const Extent& extent);

  // Nothing is given when none is free.
  std::optional<Extent> allocate(uint64_t nbytes);
  bool allocate_at(const Extent& extent);
  // `being_read`: a copy from there may be under way, for which what is written there next has to wait.
  void free(const Extent& extent, bool being_read);

  // Copies device memory to an extent after the events.
  c10::Event write(const char* memory, size_t nbytes, const Extent& extent, const std::vector<c10::Event>& after);
  // Copies an extent to device memory after `after`, and after `written`, its own write.
  c10::Event read(char* memory, size_t nbytes, const Extent& extent, const c10::Event& after,
                  const std::optional<c10::Event>& written);
  // Where the copies out are issued.
  c10::Stream out() const { return out_; }
  // Waits for all copies.
  void synchronize() const;

  // Makes copies take longer at random, for tests that seek races.
  void stress(bool on) { stressed_ = on; }

 private:
  void copy_out(const char* memory, size_t nbytes, uint64_t offset);
  void copy_in(char* memory, size_t nbytes, uint64_t offset);
  template <class Copy>
  void by_chunk(size_t nbytes, uint64_t offset, const Copy& copy);

  const Accelerator& accelerator_;
  const uint64_t capacity_;
  char* memory_;
  uint64_t reserved_ = 0;
  ExtentMap extents_;
  std::vector<std::pair<Extent, c10::Event>> being_read_;  // freed while a copy from there was under way
  c10::Stream out_, in_;
  bool stressed_ = false;
  std::minstd_rand random_;
};

}  // namespace teraio
