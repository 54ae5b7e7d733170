#include "spill.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <set>

#include "errors.h"
#include "pages.h"

namespace teraio {
namespace {

constexpr uint64_t kStripeUnit = uint64_t{1} << 20;
constexpr size_t kRequest = size_t{8} << 20;
constexpr size_t kThreadsPerChannel = 2;

[[noreturn]] void fail(const std::string& what, const std::string& path, int error, const std::string& remedy) {
  throw SpillError(what + " " + path + ": " + std::strerror(error) + " (errno " + std::to_string(error) + "). " +
                   remedy);
}

int open_unlinked(const std::string& folder, int extra_flags) {
  int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC | extra_flags, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
  // A file system without O_TMPFILE: a private name that goes at once.
  std::string name = folder + "/teraio-spill-XXXXXX";
  fd = ::mkostemp(name.data(), O_CLOEXEC | extra_flags);
  if (fd >= 0) ::unlink(name.c_str());
  return fd;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Moves all bytes, continuing short reads and writes. Returns 0 or an errno; `at` is where it stopped.
int move_all(int fd, bool write, char* memory, size_t nbytes, uint64_t offset, uint64_t* at) {
  size_t moved = 0;
  while (moved < nbytes) {
    const off_t where = static_cast<off_t>(offset + moved);
    const ssize_t n = write ? ::pwrite(fd, memory + moved, nbytes - moved, where)
                            : ::pread(fd, memory + moved, nbytes - moved, where);
    if (n > 0) {
      moved += static_cast<size_t>(n);
    } else if (n == 0 || errno != EINTR) {
      *at = offset + moved;
      // Nothing moved without an error: the file ends before the data that was written to it.
      return n == 0 ? (write ? ENOSPC : ENODATA) : errno;
    }
  }
  return 0;
}

uint64_t sample_checksum(const char* memory, size_t nbytes, size_t memory_offset) {
  uint64_t sum = 0;
  for (size_t page = 0; page < nbytes; page += kPage) {
    const uint64_t number = (memory_offset + page) / kPage;
    uint64_t word = 0;
    // Another cache line of each page, so that what repeats page by page is seen too.
    std::memcpy(&word, memory + page + number % (kPage / 64) * 64, sizeof word);
    word = (word ^ number) * 0x9E3779B97F4A7C15ull;
    sum += word ^ (word >> 29);
  }
  return sum;
}

}  // namespace

SpillSpace::SpillSpace(std::function<void(Transfer*)> done) : done_(std::move(done)) {}

SpillSpace::~SpillSpace() { stop(); }

void SpillSpace::add_folder(const std::string& path) {
  File file;
  file.path = path;
  file.fd = open_unlinked(path, O_DIRECT);
  file.direct = file.fd >= 0;
  if (file.fd < 0 && errno == EINVAL) file.fd = open_unlinked(path, 0);
  if (file.fd < 0) fail("can't create a spill file in", path, errno, "Pass another folder as `ssd`.");
  files_.push_back(file);
  // Some file systems (tmpfs) open with O_DIRECT and refuse or ignore it later; one page tells.
  reserve_file(files_.back(), kPage);
  char* page = static_cast<char*>(PagePool().take(kPage));
  std::memset(page, 0, kPage);
  uint64_t at = 0;
  int error = move_all(file.fd, true, page, kPage, 0, &at);
  if (error == EINVAL && file.direct) {
    ::fcntl(file.fd, F_SETFL, ::fcntl(file.fd, F_GETFL) & ~O_DIRECT);
    files_.back().direct = false;
    error = move_all(file.fd, true, page, kPage, 0, &at);
  }
  PagePool().give(page, kPage);
  if (error != 0) fail("can't write a spill file in", path, error, "Pass another folder as `ssd`.");
}

void SpillSpace::reserve_file(File& file, uint64_t nbytes) {
  if (nbytes <= file.reserved) return;
  int error = ::posix_fallocate(file.fd, static_cast<off_t>(file.reserved), static_cast<off_t>(nbytes - file.reserved));
  if (error == EOPNOTSUPP || error == EINVAL) {
    error = ::ftruncate(file.fd, static_cast<off_t>(nbytes)) == 0 ? 0 : errno;
  }
  if (error != 0) {
    struct statvfs fs {};
    const uint64_t available = ::fstatvfs(file.fd, &fs) == 0 ? uint64_t{fs.f_bavail} * fs.f_frsize : 0;
    fail("can't reserve " + std::to_string(nbytes) + " bytes of spill space (" + std::to_string(available) +
             " bytes are free) in",
         file.path, error, "Free space there, or pass another or a further folder as `ssd`.");
  }
  file.reserved = nbytes;
}

FolderSpeed SpillSpace::measure(size_t folder, size_t nbytes) {
  File& file = files_.at(folder);
  nbytes = round_up(nbytes, kRequest);
  reserve_file(file, nbytes);
  // The memory is used again and again: the test is to tell about the drive, not to need much itself.
  const size_t span = std::min(nbytes, 2 * kThreadsPerChannel * kRequest);
  PagePool pool;
  char* memory = static_cast<char*>(pool.take(span));
  std::memset(memory, 1, span);
  std::atomic<int> error{0};
  // Each thread takes every second request of its part [from, to).
  const auto pass = [&](bool write, size_t from, size_t to, std::vector<std::thread>& threads) {
    for (size_t t = 0; t < kThreadsPerChannel; ++t) {
      threads.emplace_back([&, write, from, to, t] {
        for (size_t at = from + t * kRequest; at < to; at += kThreadsPerChannel * kRequest) {
          uint64_t where = 0;
          const int e = move_all(file.fd, write, memory + at % span, std::min(kRequest, to - at), at, &where);
          if (e != 0) error = e;
        }
      });
    }
  };
  const auto timed = [&](auto&& body) {
    std::vector<std::thread> threads;
    const auto start = std::chrono::steady_clock::now();
    body(threads);
    for (auto& thread : threads) thread.join();
    return seconds_since(start);
  };
  timed([&](auto& threads) { pass(true, 0, nbytes, threads); });  // first writes into new space are slower
  const double write_s = timed([&](auto& threads) { pass(true, 0, nbytes, threads); });
  const double read_s = timed([&](auto& threads) { pass(false, 0, nbytes, threads); });
  const size_t half = round_up(nbytes / 2, kRequest);
  const double mixed_s = timed([&](auto& threads) {
    pass(true, 0, half, threads);
    pass(false, half, nbytes, threads);
  });
  const auto start = std::chrono::steady_clock::now();
  uint64_t where = 0;
  for (size_t i = 0; i < 8; ++i) move_all(file.fd, false, memory, kPage, i * (nbytes / 8) / kPage * kPage, &where);
  const double latency_s = seconds_since(start) / 8;
  pool.give(memory, span);
  pool.trim(span);
  if (error != 0) fail("the speed test failed in", file.path, error, "Pass another folder as `ssd`.");
  const double n = static_cast<double>(nbytes);
  return {n / read_s, n / write_s, n / mixed_s, latency_s};
}

void SpillSpace::start(const std::vector<unsigned>& weights, const Accelerator* accelerator) {
  // Largest remaining share first spreads each file's units evenly over the pattern.
  const size_t total = [&] {
    size_t sum = 0;
    for (const unsigned w : weights) sum += w;
    return sum;
  }();
  pattern_units_.assign(files_.size(), 0);
  for (size_t unit = 0; unit < total; ++unit) {
    size_t best = 0;
    double best_lag = -1;
    for (size_t f = 0; f < files_.size(); ++f) {
      const double due = static_cast<double>(weights[f]) * static_cast<double>(unit + 1) / static_cast<double>(total);
      const double lag = due - static_cast<double>(pattern_units_[f]);
      if (pattern_units_[f] < weights[f] && lag > best_lag) best = f, best_lag = lag;
    }
    pattern_.push_back(best);
    unit_rank_.push_back(pattern_units_[best]++);
  }
  accelerator_ = accelerator;
  for (size_t i = 0; i < 2 * kThreadsPerChannel * files_.size(); ++i) {
    std::optional<Staging> staging;
    if (accelerator_ != nullptr) {
      staging_.push_back(static_cast<char*>(PagePool().take(kRequest)));
      staging = Staging{staging_.back(), accelerator_->new_stream()};
    }
    threads_.emplace_back([this, i, staging] { run(i % 2 == 0 ? reads_ : writes_, staging); });
  }
}

std::vector<std::pair<char*, size_t>> SpillSpace::staging_memory() const {
  std::vector<std::pair<char*, size_t>> buffers;
  for (char* memory : staging_) buffers.emplace_back(memory, kRequest);
  return buffers;
}

void SpillSpace::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  reads_.work.notify_all();
  writes_.work.notify_all();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  for (auto& file : files_) ::close(file.fd);
  files_.clear();
  for (char* memory : staging_) {
    PagePool pool;
    pool.give(memory, kRequest);
    pool.trim(kRequest);
  }
  staging_.clear();
}

void SpillSpace::reserve(uint64_t nbytes) {
  const uint64_t stripe = kStripeUnit * pattern_.size();
  nbytes = round_up(nbytes, stripe);
  if (nbytes <= reserved_) return;
  for (size_t f = 0; f < files_.size(); ++f) reserve_file(files_[f], nbytes / stripe * pattern_units_[f] * kStripeUnit);
  const Extent grown{reserved_, nbytes - reserved_};
  reserved_ = nbytes;
  free(grown);
}

Extent SpillSpace::allocate(uint64_t nbytes) {
  nbytes = round_up(nbytes, kPage);
  if (const auto extent = extents_.allocate(nbytes)) return *extent;
  // Growing by an eighth at least keeps the number of reservations small.
  reserve(reserved_ + std::max(nbytes, reserved_ / 8));
  return *extents_.allocate(nbytes);
}

std::vector<SpillSpace::Piece> SpillSpace::pieces_of(Transfer* transfer) const {
  std::vector<Piece> pieces;
  const uint64_t units = pattern_.size();
  uint64_t at = transfer->extent.offset;
  const uint64_t end = at + transfer->extent.nbytes;
  while (at < end) {
    const uint64_t unit = at / kStripeUnit;
    const size_t slot = static_cast<size_t>(unit % units);
    const size_t file = pattern_[slot];
    const uint64_t file_unit = unit / units * pattern_units_[file] + unit_rank_[slot];
    const uint64_t inside = at % kStripeUnit;
    const size_t n = static_cast<size_t>(std::min(kStripeUnit - inside, end - at));
    const uint64_t file_offset = file_unit * kStripeUnit + inside;
    const size_t memory_offset = static_cast<size_t>(at - transfer->extent.offset);
    Piece* last = pieces.empty() ? nullptr : &pieces.back();
    // Neighbouring units of one file make one request, up to its best size.
    if (last != nullptr && last->file == file && last->file_offset + last->nbytes == file_offset &&
        last->nbytes + n <= kRequest) {
      last->nbytes += n;
    } else {
      pieces.push_back({transfer, file, file_offset, memory_offset, n});
    }
    at += n;
  }
  return pieces;
}

std::string SpillSpace::folders_of(Transfer* transfer) const {
  std::set<std::string> paths;
  for (const Piece& piece : pieces_of(transfer)) paths.insert(files_[piece.file].path);
  std::string joined;
  for (const auto& path : paths) joined += (joined.empty() ? "" : ", ") + path;
  return joined;
}

void SpillSpace::submit(Transfer* transfer, bool urgent) {
  const auto pieces = pieces_of(transfer);
  transfer->pieces_left = pieces.size();
  Channel& channel = transfer->direction == Transfer::Direction::kRead ? reads_ : writes_;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    channel.queue.insert(urgent ? channel.queue.begin() : channel.queue.end(), pieces.begin(), pieces.end());
  }
  channel.work.notify_all();
}

void SpillSpace::promote(Transfer* transfer) {
  Channel& channel = transfer->direction == Transfer::Direction::kRead ? reads_ : writes_;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::stable_partition(channel.queue.begin(), channel.queue.end(),
                        [&](const Piece& piece) { return piece.transfer == transfer; });
}

void SpillSpace::run(Channel& channel, std::optional<Staging> staging) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    channel.work.wait(lock, [&] { return stopping_ || !channel.queue.empty(); });
    if (stopping_) return;
    const Piece piece = channel.queue.front();
    channel.queue.pop_front();
    lock.unlock();
    move(piece, staging);
    lock.lock();
  }
}

// Device memory, through the thread's buffer; a piece is never larger than that.
int SpillSpace::move_staged(const Piece& piece, const Staging& staging, uint64_t* at, uint64_t* checksum) {
  const Transfer& transfer = *piece.transfer;
  const int fd = files_[piece.file].fd;
  char* memory = transfer.memory + piece.memory_offset;
  const size_t nbytes = std::min(piece.nbytes, transfer.nbytes - std::min(transfer.nbytes, piece.memory_offset));
  for (const c10::Event& event : transfer.after) event.block(staging.stream);
  if (transfer.direction == Transfer::Direction::kWrite) {
    accelerator_->copy_out(staging.memory, memory, nbytes, staging.stream);
    accelerator_->synchronize(staging.stream);
    std::memset(staging.memory + nbytes, 0, piece.nbytes - nbytes);
    *checksum = sample_checksum(staging.memory, piece.nbytes, piece.memory_offset);
    return move_all(fd, true, staging.memory, piece.nbytes, piece.file_offset, at);
  }
  const int error = move_all(fd, false, staging.memory, piece.nbytes, piece.file_offset, at);
  if (error != 0) return error;
  *checksum = sample_checksum(staging.memory, piece.nbytes, piece.memory_offset);
  accelerator_->copy_in(memory, staging.memory, nbytes, staging.stream);
  accelerator_->synchronize(staging.stream);
  return 0;
}

void SpillSpace::move(const Piece& piece, const std::optional<Staging>& staging) {
  Transfer& transfer = *piece.transfer;
  if (const unsigned max_us = max_delay_us_) {
    static thread_local std::minstd_rand random(std::random_device{}());
    ::usleep(static_cast<useconds_t>(random() % max_us));
  }
  uint64_t at = 0;
  int error = 0;
  uint64_t checksum = 0;
  std::string text;
  if (transfer.device.is_cpu()) {
    char* memory = transfer.memory + piece.memory_offset;
    error = move_all(files_[piece.file].fd, transfer.direction == Transfer::Direction::kWrite, memory, piece.nbytes,
                     piece.file_offset, &at);
    checksum = sample_checksum(memory, piece.nbytes, piece.memory_offset);
  } else {
    try {
      error = move_staged(piece, *staging, &at, &checksum);
    } catch (const std::exception& failure) {
      error = EIO;
      text = failure.what();
    }
  }
  bool last = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error != 0 && transfer.error == 0) {
      transfer.error = error;
      transfer.error_text = text;
      transfer.error_path = files_[piece.file].path;
      transfer.error_offset = at;
    }
    transfer.checksum += checksum;
    last = --transfer.pieces_left == 0;
  }
  if (last) done_(&transfer);
}

}  // namespace teraio
