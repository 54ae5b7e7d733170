// Streams and events.
//
// In: work as functions. Out: the order in which it runs, each stream on a thread of its own. Must not know: memory,
// the names of the API.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

namespace cuda_double {

using Clock = std::chrono::steady_clock;
using Work = std::function<void()>;

// [Note: pace]
// With CUDA_DOUBLE_PACE=8 the device computes nothing but few whole numbers, by which programs decide what to do, and
// touches no large memory. Kernels and copies take eight times as long as they would on a GPU instead, so that this CPU
// keeps ahead of it as a real one does, and what a model of its real size does to memory, streams and the allocator can
// be watched. Each stream has a clock: work begins when the stream is free, what it waits for has ended and the host has
// launched it. Threads sleep until the clocks' times, and events hold those, not the times at which threads woke. 0:
// there is no pace.
double pace();
constexpr size_t kFewBytes = 1 << 20;  // numbers that programs read and write, which are copied and computed all the same

class Stream {
 public:
  // `blocking`: in one order with the null stream, as CUDA's streams are unless asked otherwise.
  explicit Stream(bool blocking);
  ~Stream();  // when all of its work is done

  // A kernel or a copy: runs after a random delay if there is one (set_delay).
  void launch(Work work);
  // The same, and the stream is busy for so long on a GPU ([Note: pace]).
  void launch(Work work, double seconds);
  // Bookkeeping, such as a wait for an event: runs without delay.
  void add(Work work);

  bool idle() const;
  void synchronize();
  bool blocking() const { return blocking_; }

 private:
  friend class Event;
  void keep_order();  // between the null stream and blocking ones

  const bool blocking_;
  // Shared with the thread, which may outlive the stream.
  struct Queue {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Work> work;
    uint64_t enqueued = 0;
    uint64_t done = 0;
    bool ended = false;
    Clock::time_point time;  // at which what has run so far has ended; of the thread alone
  };
  std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
};

class Event {
 public:
  explicit Event(bool timed) : timed_(timed) {}
  void record(Stream& stream);
  // Work that `stream` is given from now on starts after the place recorded last.
  void block(Stream& stream);
  bool reached() const;
  void synchronize();
  bool timed() const { return timed_; }
  // Both must have been reached.
  static double elapsed_ms(const Event& from, const Event& to);

 private:
  // What is recorded may be waited for after the event is gone.
  struct Place {
    mutable std::mutex mutex;
    std::condition_variable changed;
    uint64_t recorded = 0;
    uint64_t reached = 0;
    Clock::time_point time;
  };
  static Clock::time_point wait_for(Place& place, uint64_t version);

  const bool timed_;
  std::shared_ptr<Place> place_ = std::make_shared<Place>();
};

Stream& null_stream();
Stream* new_stream(bool blocking);
void destroy(Stream* stream);
void synchronize_all();

// Kernels and copies start after up to max_us microseconds, drawn anew for each.
void set_delay(int64_t max_us);

}  // namespace cuda_double
