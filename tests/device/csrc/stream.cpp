#include "stream.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>

namespace sim {
namespace {

constexpr size_t kPoolSize = 4;

std::atomic<int64_t> max_delay_us{0};

// Leaked, like the streams in it: their threads may still run when the process ends.
struct Streams {
  std::mutex mutex;
  std::vector<std::unique_ptr<Stream>> all;
  std::vector<Stream*> pool;
  size_t turn = 0;

  Stream& make() {
    all.push_back(std::make_unique<Stream>(static_cast<c10::StreamId>(all.size())));
    return *all.back();
  }
};

Streams& streams() {
  static Streams* instance = [] {
    auto* made = new Streams;
    made->make();  // the default stream: number 0
    return made;
  }();
  return *instance;
}

thread_local Stream* current = nullptr;

// What there is to warn of was said when the op was issued.
struct Silence final : c10::WarningHandler {
  void process(const c10::Warning& /*warning*/) override {}
};

}  // namespace

Stream::Stream(c10::StreamId id) : id_(id), random_(static_cast<unsigned>(id) + 1) {
  std::thread([this] { run(); }).detach();
}

void Stream::launch(Work kernel) {
  enqueue([this, kernel = std::move(kernel)] {
    if (const int64_t max_us = max_delay_us; max_us > 0) {
      const auto delay_us = std::uniform_int_distribution<int64_t>(0, max_us)(random_);
      std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    }
    kernel();
  });
}

void Stream::enqueue(Work work) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(work));
    ++enqueued_;
  }
  changed_.notify_all();
}

bool Stream::idle() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return done_ == enqueued_;
}

void Stream::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this, target = enqueued_] { return done_ >= target; });
}

void Stream::synchronize() {
  wait();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (auto error = std::exchange(error_, nullptr)) std::rethrow_exception(error);
}

void Stream::pause() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++pauses_;
}

void Stream::resume() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    --pauses_;
  }
  changed_.notify_all();
}

void Stream::run() {
  pthread_setname_np(pthread_self(), ("sim-stream-" + std::to_string(id_)).c_str());
  // Kernels are no ops of the program: observers must not see what they call, nor autograd record it.
  const at::DisableRecordFunctionGuard unobserved;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::AutoGradMode no_grad(false);
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard silent(&silence);
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return pauses_ == 0 && !queue_.empty(); });
    Work work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      at::init_num_threads();  // as many as the program has set by now
      work();
    } catch (...) {
      error = std::current_exception();
    }
    work = nullptr;
    lock.lock();
    ++done_;
    if (error && !error_) error_ = std::move(error);
    changed_.notify_all();
  }
}

void Event::record(Stream& stream) {
  uint64_t version = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    version = ++recorded_;
  }
  stream.enqueue([self = shared_from_this(), version] {
    const std::lock_guard<std::mutex> lock(self->mutex_);
    if (version > self->reached_) {
      self->reached_ = version;
      self->time_ = Clock::now();
    }
    self->reached_changed_.notify_all();
  });
}

void Event::block(Stream& stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (reached_ == recorded_) return;
  stream.enqueue([self = shared_from_this(), version = recorded_] { self->wait_for(version); });
}

bool Event::query() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reached_ == recorded_;
}

void Event::synchronize() const {
  uint64_t version = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    version = recorded_;
  }
  wait_for(version);
}

void Event::wait_for(uint64_t version) const {
  std::unique_lock<std::mutex> lock(mutex_);
  reached_changed_.wait(lock, [&] { return reached_ >= version; });
}

Event::Clock::time_point Event::time() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(recorded_ > 0 && reached_ == recorded_, "elapsed_time: record both events and synchronize first");
  return time_;
}

double Event::elapsed_ms(const Event& from, const Event& to) {
  return std::chrono::duration<double, std::milli>(to.time() - from.time()).count();
}

Stream& default_stream() { return stream_of(0); }

Stream& new_stream() {
  Streams& known = streams();
  const std::lock_guard<std::mutex> lock(known.mutex);
  return known.make();
}

Stream& pooled_stream() {
  Streams& known = streams();
  const std::lock_guard<std::mutex> lock(known.mutex);
  if (known.pool.size() < kPoolSize) {
    known.pool.push_back(&known.make());
    return *known.pool.back();
  }
  return *known.pool[known.turn++ % kPoolSize];
}

Stream& stream_of(const c10::Stream& handle) {
  TORCH_CHECK(handle.device_type() == kDeviceType, "a stream of ", handle.device(), " is none of the sim device");
  return stream_of(handle.id());
}

Stream& stream_of(c10::StreamId id) {
  Streams& known = streams();
  const std::lock_guard<std::mutex> lock(known.mutex);
  TORCH_CHECK(id >= 0 && static_cast<size_t>(id) < known.all.size(), "the sim device has no stream ", id);
  return *known.all[static_cast<size_t>(id)];
}

Stream& current_stream() { return current == nullptr ? default_stream() : *current; }

void launch(Work kernel) { current_stream().launch(std::move(kernel)); }
void synchronize() { current_stream().synchronize(); }

Stream& exchange_current_stream(Stream& stream) {
  Stream& before = current_stream();
  current = &stream;
  return before;
}

std::vector<Stream*> all_streams() {
  Streams& known = streams();
  const std::lock_guard<std::mutex> lock(known.mutex);
  std::vector<Stream*> all;
  for (const auto& stream : known.all) all.push_back(stream.get());
  return all;
}

void synchronize_all() {
  for (Stream* stream : all_streams()) stream->synchronize();
}

void set_delay(int64_t max_us) {
  TORCH_CHECK(max_us >= 0, "a delay of ", max_us, " us is none; give 0 or more");
  max_delay_us = max_us;
}

}  // namespace sim
