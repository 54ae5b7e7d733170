// The accelerator whose memory is limited, through PyTorch's device-agnostic interfaces only: one build serves CUDA
// and every other backend.
// In: bytes, streams. Out: device memory, events, copies on streams. Must not know: blocks, budgets, plans, files.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace teraio {

class Accelerator {
 public:
  // Throws c10::Error where PyTorch has no such device.
  explicit Accelerator(c10::Device device);

  c10::Device device() const { return device_; }
  // Whether it is the one that this thread issues work to.
  bool is_current() const { return guard_.getDevice() == device_; }
  // The stream on which this thread issues work.
  c10::Stream stream() const { return guard_.getStream(device_); }
  // A stream of its own, for copies.
  c10::Stream new_stream() const { return guard_.getNewStream(device_); }

  // Memory from PyTorch's allocator on this thread's stream. May call free_memory(), see below. Throws
  // c10::OutOfMemoryError.
  at::DataPtr allocate(size_t nbytes) const;
  // Keeps the memory from being used again before what is issued on `stream` so far is done.
  void keep_until_done(const at::DataPtr& memory, c10::Stream stream) const;
  // Whether the allocator gave this memory, and gets it back from its deleter.
  bool owns(const at::DataPtr& memory) const { return memory.get_deleter() == allocator_->raw_deleter(); }

  // Whether the allocator could give so much in one piece now, and any power of two below it, whichever is asked for:
  // small requests have memory of their own, and allocators differ in what is small. It tries hard.
  bool can_allocate_up_to(size_t nbytes) const;

  // All that PyTorch's allocator has handed out on this device, the most since reset_peak(), and what it holds in all.
  struct Allocated {
    int64_t current, peak, reserved;
  };
  Allocated allocated() const;
  void reset_peak() const { allocator_->resetPeakStats(device_.index()); }

  // An event after all that is issued on `stream` so far.
  c10::Event event(c10::Stream stream, bool timed = false) const;
  static void wait_for(const std::vector<c10::Event>& events);

  // Copies bytes between device memory and host memory on `stream`; returns when they are issued. Ops' observers
  // don't see it.
  void copy_out(char* host, const char* memory, size_t nbytes, c10::Stream stream) const;
  void copy_in(char* memory, const char* host, size_t nbytes, c10::Stream stream) const;
  void synchronize(c10::Stream stream) const { guard_.synchronizeStream(stream); }
  // All streams.
  void synchronize() const { guard_.synchronizeDevice(device_.index()); }
  // Fills memory with 0xFF bytes (NaN) on `stream`.
  void poison(char* memory, size_t nbytes, c10::Stream stream) const;

 private:
  bool can_allocate(size_t nbytes) const;

  c10::Device device_;
  c10::impl::VirtualGuardImpl guard_;
  c10::DeviceAllocator* allocator_;
};

// That of a device such as "cuda:0", made once: its blocks may outlive every run. Call it with the GIL or alone.
const Accelerator* accelerator_of(const std::string& device);

// Has PyTorch's allocator for CUDA call `free_memory` when it has no free block that fits; it tries again if that
// returns true. The allocator's lock is held meanwhile. Returns false where PyTorch was built without CUDA. Calling
// it again changes nothing.
bool install_free_memory_callback(bool (*free_memory)());

}  // namespace teraio
