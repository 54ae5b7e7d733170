#include "speed_test.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "clock.h"
#include "pages.h"

namespace teraio {
namespace {

class SpeedTest {
 public:
  SpeedTest(const Path& path, Request request, size_t nbytes, size_t threads, size_t span)
      : path_(path), request_(std::move(request)), nbytes_(nbytes), threads_(threads), slots_(span / request_.nbytes) {}

  FolderSpeed run() {
    seconds(nbytes_, 0);  // first writes into new space are slower
    const double n = static_cast<double>(nbytes_);
    FolderSpeed speed;
    std::vector<double> page_seconds;  // at several times, as the machine may be busy at one of them
    speed.write_bytes_per_s = n / seconds(nbytes_, 0);
    read_pages(page_seconds);
    speed.read_bytes_per_s = n / seconds(0, nbytes_);
    read_pages(page_seconds);
    const size_t half = round_up(nbytes_ / 2, request_.nbytes);
    speed.mixed_bytes_per_s = n / seconds(half, nbytes_ - half);
    read_pages(page_seconds);
    const auto middle = page_seconds.begin() + static_cast<std::ptrdiff_t>(page_seconds.size() / 2);
    std::nth_element(page_seconds.begin(), middle, page_seconds.end());
    speed.latency_s = *middle;
    return speed;
  }

  Moved failed() { return std::move(failed_); }

 private:
  // Writes the first `write` bytes and reads the `read` bytes after them, at the same time.
  double seconds(size_t write, size_t read) {
    std::vector<std::thread> threads;
    const int64_t start = now_ns();
    pass(true, 0, write, threads);
    pass(false, write, write + read, threads);
    for (auto& thread : threads) thread.join();
    return seconds_since(start);
  }

  // The threads share the requests of [from, to) out among them.
  void pass(bool write, size_t from, size_t to, std::vector<std::thread>& threads) {
    for (size_t t = 0; t < threads_ && from < to; ++t) {
      threads.emplace_back([this, write, to, at = from + t * request_.nbytes]() mutable {
        for (; at < to; at += threads_ * request_.nbytes) move(write, at, std::min(request_.nbytes, to - at));
      });
    }
  }

  // How long each of some pages takes by itself.
  void read_pages(std::vector<double>& each_seconds) {
    constexpr size_t kPages = 8;
    for (size_t i = 0; i < kPages; ++i) {
      const int64_t start = now_ns();
      move(false, i * (nbytes_ / kPages) / kPage * kPage, kPage);
      each_seconds.push_back(seconds_since(start));
    }
  }

  void move(bool write, size_t at, size_t nbytes) {
    Request request = request_;
    request.memory += at / request_.nbytes % slots_ * request_.nbytes;
    request.write = write;
    request.nbytes = nbytes;
    request.offset = at;
    Moved moved = move_all(path_, request);
    if (moved.error == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    failed_ = std::move(moved);
  }

  const Path& path_;
  const Request request_;  // the first one of full size
  const size_t nbytes_;
  const size_t threads_;
  const size_t slots_;  // requests that lie in memory side by side
  std::mutex mutex_;
  Moved failed_;
};

}  // namespace

StagedPath::StagedPath(const TestMemory& test, size_t threads)
    : accelerator_(test.device),
      path_{[this](const Request& request) { return move(request); }, kStagingBytes, kStagingBytes} {
  for (size_t i = 0; i < 2 * threads; ++i) {
    free_.push_back({test.staging + i * kStagingBytes, accelerator_.new_stream()});
  }
}

Moved StagedPath::move(const Request& request) {
  std::unique_lock<std::mutex> lock(mutex_);
  const Staging staging = free_.back();  // there is one: no more threads move than it was made for
  free_.pop_back();
  lock.unlock();
  Moved moved;
  try {
    uint64_t checksum = 0;
    moved = move_staged(accelerator_, staging, request, request.nbytes, 0, &checksum);
  } catch (const std::exception& failure) {
    moved = {0, EIO, failure.what()};
  }
  lock.lock();
  free_.push_back(staging);
  return moved;
}

FolderSpeed test_speed(const Path& path, size_t folder, int fd, size_t nbytes, size_t threads, TestMemory test,
                       Moved* failed) {
  PagePool pool;
  const bool own = test.memory == nullptr;
  if (own) {
    test.nbytes = std::min(nbytes, 2 * threads * path.request);
    test.memory = static_cast<char*>(pool.take(test.nbytes));
    std::memset(test.memory, 1, test.nbytes);
  }
  SpeedTest speed_test(path, {folder, fd, false, test.memory, test.device, std::min(path.request, test.nbytes), 0},
                       nbytes, threads, test.nbytes);
  const FolderSpeed speed = speed_test.run();
  *failed = speed_test.failed();
  if (own) {
    pool.give(test.memory, test.nbytes);
    pool.trim(test.nbytes);
  }
  return speed;
}

}  // namespace teraio
