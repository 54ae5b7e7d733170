// Streams and events of the simulated device.
//
// In: work as functions. Out: the order in which it runs, each stream on a thread of its own. Must not know: tensors,
// memory.
#pragma once

#include <c10/core/Stream.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "device.h"

namespace sim {

// A queue of work and the thread that does it, in order. Streams are never destroyed: their number is small, and
// handles to them may outlive anything.
class Stream {
 public:
  explicit Stream(c10::StreamId id);
  c10::Stream handle() const { return c10::Stream(c10::Stream::UNSAFE, device(), id_); }

  // A kernel: runs after a random delay if there is one (set_delay). What it throws is raised by synchronize().
  void launch(Work kernel);
  // Bookkeeping, such as a wait for an event: runs without delay.
  void enqueue(Work work);

  bool idle() const;
  // Until all that was enqueued before this call is done.
  void wait();
  // The same. Raises: what a kernel of this stream threw since the last call.
  void synchronize();

  // Work enqueued from now on does not start before resume() (tests freeze the device with it).
  void pause();
  void resume();

 private:
  void run();

  const c10::StreamId id_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> queue_;
  uint64_t enqueued_ = 0;
  uint64_t done_ = 0;
  int pauses_ = 0;
  std::exception_ptr error_;
  std::minstd_rand random_;
};

// A place in a stream's order. record() may be called again; waits made before then are for the earlier place.
class Event : public std::enable_shared_from_this<Event> {
 public:
  void record(Stream& stream);
  // Work that `stream` is given from now on starts after the recorded place. Nothing if it was never recorded.
  void block(Stream& stream);
  bool query() const;
  void synchronize() const;
  // Between the places of the two events, which must both have been reached.
  static double elapsed_ms(const Event& from, const Event& to);

 private:
  using Clock = std::chrono::steady_clock;
  void wait_for(uint64_t version) const;
  Clock::time_point time() const;

  mutable std::mutex mutex_;
  mutable std::condition_variable reached_changed_;
  uint64_t recorded_ = 0;
  uint64_t reached_ = 0;
  Clock::time_point time_;
};

Stream& default_stream();
Stream& new_stream();
Stream& pooled_stream();  // one of a few, in turn
Stream& stream_of(const c10::Stream& handle);
Stream& stream_of(c10::StreamId id);

// The calling thread's.
Stream& current_stream();
Stream& exchange_current_stream(Stream& stream);

std::vector<Stream*> all_streams();
void synchronize_all();

// Kernels start after up to max_us microseconds, drawn anew for each.
void set_delay(int64_t max_us);

}  // namespace sim
