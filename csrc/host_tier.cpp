#include "host_tier.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <random>

#include "clock.h"
#include "pages.h"

namespace teraio {
namespace {

constexpr uint64_t kChunk = uint64_t{256} << 20;
constexpr size_t kPopulatingThreads = 8;

// Takes the pages of the chunks by several threads at once: page-locking takes those that are lacking one after the
// other. A kernel that can't is left to do that.
void populate(const std::vector<std::pair<char*, size_t>>& chunks) {
#ifdef MADV_POPULATE_WRITE
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < chunks.size(); i = next++) {
      ::madvise(chunks[i].first, chunks[i].second, MADV_POPULATE_WRITE);
    }
  };
  std::vector<std::thread> threads;
  const size_t most = std::min<size_t>({chunks.size(), kPopulatingThreads, std::thread::hardware_concurrency()});
  for (size_t i = 1; i < most; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
#endif
}

}  // namespace

HostTier::HostTier(const Accelerator& accelerator, uint64_t capacity, std::function<void(Transfer*)> done)
    : accelerator_(accelerator),
      capacity_(capacity / kPage * kPage),
      done_(std::move(done)),
      out_(accelerator.new_stream()),
      in_(accelerator.new_stream()) {
  // One range of addresses; its pages are taken as the tier grows.
  void* memory =
      ::mmap(nullptr, capacity_ + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  ::madvise(memory_, capacity_, MADV_HUGEPAGE);
  thread_ = std::thread([this] { run(); });
}

HostTier::~HostTier() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
  accelerator_.synchronize(in_);
  ::munmap(memory_, capacity_ + kHugePage);
}

std::vector<std::pair<char*, size_t>> HostTier::reserve(uint64_t nbytes) {
  std::vector<std::pair<char*, size_t>> chunks;
  const uint64_t wanted = std::min(capacity_, round_up(nbytes, kChunk));
  while (reserved_ < wanted) {
    const uint64_t size = std::min(kChunk, capacity_ - reserved_);
    chunks.emplace_back(memory_ + reserved_, size);
    extents_.free({reserved_, size});
    reserved_ += size;
  }
  populate(chunks);
  return chunks;
}

std::optional<Extent> HostTier::allocate(uint64_t nbytes) {
  free_what_was_read();
  return extents_.allocate(nbytes);
}

bool HostTier::allocate_at(const Extent& extent) {
  free_what_was_read();
  return extents_.allocate_at(extent);
}

void HostTier::free(const Extent& extent, std::optional<c10::Event> read) {
  if (read && !read->query()) {
    being_read_.emplace_back(extent, std::move(*read));
  } else {
    extents_.free(extent);
  }
}

void HostTier::free_what_was_read() {
  const auto done = std::partition(being_read_.begin(), being_read_.end(),
                                   [](const auto& reading) { return !reading.second.query(); });
  for (auto it = done; it != being_read_.end(); ++it) extents_.free(it->first);
  being_read_.erase(done, being_read_.end());
}

HostSpeeds HostTier::measure(size_t nbytes) {
  nbytes = std::min<size_t>(nbytes, reserved_) / 2;
  const at::DataPtr memory = accelerator_.allocate(2 * nbytes);
  Transfer write, read;
  write.direction = Transfer::Direction::kWrite;
  write.nbytes = read.nbytes = nbytes;
  write.memory = static_cast<char*>(memory.get());
  read.memory = write.memory + nbytes;
  read.extent.offset = nbytes / kPage * kPage;
  const auto timed = [&](bool writes, bool reads) {
    const int64_t start = now_ns();
    if (writes) copy(write, out_);
    if (reads) copy(read, in_);
    accelerator_.synchronize(out_);
    accelerator_.synchronize(in_);
    return static_cast<double>(nbytes) / seconds_since(start);
  };
  accelerator_.event(accelerator_.stream()).synchronize();  // older work may still use the memory
  timed(true, true);                                        // touches the pages
  return {timed(false, true), timed(true, false), 2 * timed(true, true)};
}

void HostTier::copy(const Transfer& transfer, c10::Stream stream) {
  size_t at = 0;
  while (at < transfer.nbytes) {
    const uint64_t offset = transfer.extent.offset + at;
    const size_t n = std::min<size_t>(transfer.nbytes - at, kChunk - offset % kChunk);
    if (transfer.direction == Transfer::Direction::kWrite) {
      accelerator_.copy_out(memory_ + offset, transfer.memory + at, n, stream);
    } else {
      accelerator_.copy_in(transfer.memory + at, memory_ + offset, n, stream);
    }
    at += n;
  }
}

void HostTier::write(Transfer* transfer, bool urgent) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.insert(urgent ? queue_.begin() : queue_.end(), transfer);
  }
  work_.notify_one();
}

c10::Event HostTier::read(const Transfer& transfer) {
  for (const c10::Event& event : transfer.after) event.block(in_);
  copy(transfer, in_);
  return accelerator_.event(in_);
}

void HostTier::run() {
  std::minstd_rand random(std::random_device{}());
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    Transfer* transfer = queue_.front();
    queue_.pop_front();
    lock.unlock();
    try {
      for (const c10::Event& event : transfer->after) event.block(out_);
      if (const unsigned max_us = max_delay_us_) ::usleep(static_cast<useconds_t>(random() % max_us));
      copy(*transfer, out_);
      accelerator_.event(out_).synchronize();
    } catch (const std::exception& error) {
      transfer->error = EIO;
      transfer->error_text = error.what();
      transfer->error_path = "host memory";
    }
    done_(transfer);
    lock.lock();
  }
}

}  // namespace teraio
