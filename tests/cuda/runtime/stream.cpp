#include "stream.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>
#include <utility>

namespace cuda_double {
namespace {

std::atomic<int64_t> max_delay_us{0};

// Leaked, like the null stream: threads may still run when the process ends.
struct Streams {
  std::mutex mutex;
  std::vector<std::shared_ptr<Stream>> all;  // whoever looks at one keeps it
};

Streams& streams() {
  static auto* made = new Streams;
  return *made;
}

void delay() {
  const int64_t max_us = max_delay_us;
  if (max_us <= 0) return;
  thread_local std::minstd_rand random(7);
  std::this_thread::sleep_for(std::chrono::microseconds(std::uniform_int_distribution<int64_t>(0, max_us)(random)));
}

// Shorter sleeps than this take longer than they should.
constexpr auto kShortSleep = std::chrono::microseconds(200);

void sleep_until(Clock::time_point time) {
  if (time - Clock::now() > kShortSleep) std::this_thread::sleep_until(time);
}

// What `stream` is given from now on comes after what `other` has been given so far.
void follow(Stream& stream, Stream& other) {
  Event event(/*timed=*/false);
  event.record(other);
  event.block(stream);
}

}  // namespace

double pace() {
  static const double times = [] {
    const char* text = std::getenv("CUDA_DOUBLE_PACE");
    return text == nullptr ? 0 : std::strtod(text, nullptr);
  }();
  return times;
}

Stream::Stream(bool blocking) : blocking_(blocking) {
  std::thread([queue = queue_] {
    std::unique_lock<std::mutex> lock(queue->mutex);
    for (;;) {
      queue->changed.wait(lock, [&] { return !queue->work.empty() || queue->ended; });
      if (queue->work.empty()) return;
      Work work = std::move(queue->work.front());
      queue->work.pop_front();
      lock.unlock();
      work();
      work = nullptr;
      lock.lock();
      ++queue->done;
      queue->changed.notify_all();
    }
  }).detach();
}

Stream::~Stream() {
  const std::lock_guard<std::mutex> lock(queue_->mutex);
  queue_->ended = true;
  queue_->changed.notify_all();
}

void Stream::launch(Work work) {
  keep_order();
  add([work = std::move(work)] {
    delay();
    work();
  });
}

void Stream::launch(Work work, double seconds) {
  if (pace() == 0) return launch(std::move(work));
  keep_order();
  const auto busy = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(pace() * seconds));
  add([work = std::move(work), launched = Clock::now(), busy, queue = queue_.get()] {
    queue->time = std::max(queue->time, launched) + busy;
    sleep_until(queue->time);
    work();
  });
}

void Stream::keep_order() {
  if (this != &null_stream()) {
    if (blocking_ && !null_stream().idle()) follow(*this, null_stream());
    return;
  }
  std::vector<std::shared_ptr<Stream>> others;
  {
    const std::lock_guard<std::mutex> lock(streams().mutex);
    others = streams().all;
  }
  for (const auto& other : others) {
    if (other->blocking_ && !other->idle()) follow(*this, *other);
  }
}

void Stream::add(Work work) {
  const std::lock_guard<std::mutex> lock(queue_->mutex);
  queue_->work.push_back(std::move(work));
  ++queue_->enqueued;
  queue_->changed.notify_all();
}

bool Stream::idle() const {
  const std::lock_guard<std::mutex> lock(queue_->mutex);
  return queue_->done == queue_->enqueued;
}

void Stream::synchronize() {
  std::unique_lock<std::mutex> lock(queue_->mutex);
  queue_->changed.wait(lock, [this, target = queue_->enqueued] { return queue_->done >= target; });
}

void Event::record(Stream& stream) {
  uint64_t version = 0;
  {
    const std::lock_guard<std::mutex> lock(place_->mutex);
    version = ++place_->recorded;
  }
  stream.add([place = place_, version, recorded = Clock::now(), queue = stream.queue_.get()] {
    const auto time = pace() == 0 ? Clock::now() : std::max(queue->time, recorded);
    const std::lock_guard<std::mutex> lock(place->mutex);
    if (version > place->reached) {
      place->reached = version;
      place->time = time;
    }
    place->changed.notify_all();
  });
}

void Event::block(Stream& stream) {
  const std::lock_guard<std::mutex> lock(place_->mutex);
  if (place_->reached == place_->recorded) return;
  stream.add([place = place_, version = place_->recorded, queue = stream.queue_.get()] {
    queue->time = std::max(queue->time, wait_for(*place, version));
  });
}

bool Event::reached() const {
  const std::lock_guard<std::mutex> lock(place_->mutex);
  return place_->reached == place_->recorded;
}

void Event::synchronize() {
  uint64_t version = 0;
  {
    const std::lock_guard<std::mutex> lock(place_->mutex);
    version = place_->recorded;
  }
  wait_for(*place_, version);
}

Clock::time_point Event::wait_for(Place& place, uint64_t version) {
  std::unique_lock<std::mutex> lock(place.mutex);
  place.changed.wait(lock, [&] { return place.reached >= version; });
  return place.time;
}

double Event::elapsed_ms(const Event& from, const Event& to) {
  return std::chrono::duration<double, std::milli>(to.place_->time - from.place_->time).count();
}

Stream& null_stream() {
  static auto* made = new Stream(/*blocking=*/false);
  return *made;
}

Stream* new_stream(bool blocking) {
  const std::lock_guard<std::mutex> lock(streams().mutex);
  return streams().all.emplace_back(std::make_shared<Stream>(blocking)).get();
}

void destroy(Stream* stream) {
  const std::lock_guard<std::mutex> lock(streams().mutex);
  auto& all = streams().all;
  const auto is_it = [stream](const auto& other) { return other.get() == stream; };
  all.erase(std::remove_if(all.begin(), all.end(), is_it), all.end());
}

void synchronize_all() {
  null_stream().synchronize();
  std::vector<std::shared_ptr<Stream>> all;
  {
    const std::lock_guard<std::mutex> lock(streams().mutex);
    all = streams().all;
  }
  for (const auto& stream : all) stream->synchronize();
}

void set_delay(int64_t max_us) { max_delay_us = max_us; }

}  // namespace cuda_double
