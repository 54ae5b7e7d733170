#include "spill.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <set>
#include <utility>

#include "errors.h"
#include "pages.h"

namespace teraio {
namespace {

constexpr size_t kThreadsPerChannel = 2;

thread_local bool t_io_thread = false;

// An error in words: the path's own where it has some, else what the system calls it.
std::string in_words(int error, const std::string& text) {
  return (text.empty() ? std::strerror(error) : text) + " (errno " + std::to_string(error) + ")";
}

[[noreturn]] void fail(const std::string& what, const std::string& path, const Moved& moved,
                       const std::string& remedy) {
  throw SpillError(what + " " + path + ": " + in_words(moved.error, moved.text) + ". " + remedy);
}

[[noreturn]] void fail(const std::string& what, const std::string& path, int error, const std::string& remedy) {
  fail(what, path, Moved{0, error, ""}, remedy);
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
  const Request first{files_.size() - 1, file.fd, true, page, c10::kCPU, kPage, 0};
  Moved moved = move_all(posix_path(), first);
  if (moved.error == EINVAL && file.direct) {
    ::fcntl(file.fd, F_SETFL, ::fcntl(file.fd, F_GETFL) & ~O_DIRECT);
    files_.back().direct = false;
    moved = move_all(posix_path(), first);
  }
  PagePool().give(page, kPage);
  if (moved.error != 0) fail("can't write a spill file in", path, moved, "Pass another folder as `ssd`.");
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

FolderSpeed SpillSpace::measure(size_t folder, size_t nbytes, TestMemory test) {
  File& file = files_.at(folder);
  const Path& path = path_of(test.device);
  nbytes = round_up(nbytes, path.request);
  reserve_file(file, nbytes);
  Moved failed;
  const FolderSpeed speed = test_speed(path, folder, file.fd, nbytes, kThreadsPerChannel, test, &failed);
  if (failed.error != 0) fail("the speed test failed in", file.path, failed, "Pass another folder as `ssd`.");
  return speed;
}

void SpillSpace::start(const std::vector<unsigned>& weights) {
  // Largest remaining share first spreads each file's units evenly over the pattern.
  const size_t total = [&] {
    size_t sum = 0;
    for (const unsigned w : weights) sum += w;
    return sum;
  }();
  stripe_unit_ = std::max(host_path_.stripe_unit, device_path_.stripe_unit);
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
  const size_t threads = kThreadsPerChannel * files_.size();
  for (size_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { run(reads_); });
    threads_.emplace_back([this] { run(writes_); });
  }
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
}

void SpillSpace::reserve(uint64_t nbytes) {
  const uint64_t stripe = stripe_unit_ * pattern_.size();
  nbytes = round_up(nbytes, stripe);
  if (nbytes <= reserved_) return;
  for (size_t f = 0; f < files_.size(); ++f) reserve_file(files_[f], nbytes / stripe * pattern_units_[f] * stripe_unit_);
  const Extent grown{reserved_, nbytes - reserved_};
  reserved_ = nbytes;
  free(grown);
}

Extent SpillSpace::allocate(uint64_t nbytes) {
  nbytes = round_up(nbytes, kPage);
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second >= nbytes && (best == free_.end() || it->second < best->second)) best = it;
  }
  if (best == free_.end()) {
    // Growing by an eighth at least keeps the number of reservations small.
    reserve(reserved_ + std::max(nbytes, reserved_ / 8));
    return allocate(nbytes);
  }
  const Extent extent{best->first, nbytes};
  allocate_at(extent);
  return extent;
}

bool SpillSpace::allocate_at(const Extent& extent) {
  auto it = free_.upper_bound(extent.offset);
  if (it == free_.begin()) return false;
  --it;
  const uint64_t begin = it->first;
  const uint64_t end = begin + it->second;
  const uint64_t last = extent.offset + extent.nbytes;
  if (last > end) return false;
  free_.erase(it);
  if (extent.offset > begin) free_[begin] = extent.offset - begin;
  if (end > last) free_[last] = end - last;
  return true;
}

void SpillSpace::free(const Extent& extent) {
  uint64_t begin = extent.offset;
  uint64_t end = begin + extent.nbytes;
  auto next = free_.lower_bound(begin);
  if (next != free_.end() && next->first == end) {
    end += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == begin) {
      begin = before->first;
      free_.erase(before);
    }
  }
  free_[begin] = end - begin;
}

std::vector<SpillSpace::Piece> SpillSpace::pieces_of(Transfer* transfer) const {
  std::vector<Piece> pieces;
  const uint64_t units = pattern_.size();
  const size_t request = path_of(transfer->device).request;
  uint64_t at = transfer->extent.offset;
  const uint64_t end = at + transfer->extent.nbytes;
  while (at < end) {
    const uint64_t unit = at / stripe_unit_;
    const size_t slot = static_cast<size_t>(unit % units);
    const size_t file = pattern_[slot];
    const uint64_t file_unit = unit / units * pattern_units_[file] + unit_rank_[slot];
    const uint64_t inside = at % stripe_unit_;
    const size_t n = static_cast<size_t>(std::min(stripe_unit_ - inside, end - at));
    const uint64_t file_offset = file_unit * stripe_unit_ + inside;
    const size_t memory_offset = static_cast<size_t>(at - transfer->extent.offset);
    Piece* last = pieces.empty() ? nullptr : &pieces.back();
    // Neighbouring units of one file make one request, up to its best size.
    if (last != nullptr && last->file == file && last->file_offset + last->nbytes == file_offset &&
        last->nbytes + n <= request) {
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

bool SpillSpace::on_io_thread() { return t_io_thread; }

void SpillSpace::run(Channel& channel) {
  t_io_thread = true;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    channel.work.wait(lock, [&] { return stopping_ || !channel.queue.empty(); });
    if (stopping_) return;
    const Piece piece = channel.queue.front();
    channel.queue.pop_front();
    lock.unlock();
    move(piece);
    lock.lock();
  }
}

Moved SpillSpace::move_bytes(const Piece& piece) const {
  const Transfer& transfer = *piece.transfer;
  if (transfer.before) {
    try {
      transfer.before();
    } catch (const std::exception& error) {
      return {0, EIO, error.what()};
    }
  }
  return move_all(path_of(transfer.device),
                  {piece.file, files_[piece.file].fd, transfer.direction == Transfer::Direction::kWrite,
                   transfer.memory + piece.memory_offset, transfer.device, piece.nbytes, piece.file_offset});
}

void SpillSpace::move(const Piece& piece) {
  Transfer& transfer = *piece.transfer;
  if (const unsigned max_us = max_delay_us_) {
    static thread_local std::minstd_rand random(std::random_device{}());
    ::usleep(static_cast<useconds_t>(random() % max_us));
  }
  Moved moved = move_bytes(piece);
  const uint64_t checksum =
      transfer.device.is_cpu()
          ? sample_checksum(transfer.memory + piece.memory_offset, piece.nbytes, piece.memory_offset)
          : 0;
  bool last = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (moved.error != 0 && transfer.error == 0) {
      transfer.error = moved.error;
      transfer.error_text = std::move(moved.text);
      transfer.error_path = files_[piece.file].path;
      transfer.error_offset = piece.file_offset + moved.nbytes;
    }
    transfer.checksum += checksum;
    last = --transfer.pieces_left == 0;
  }
  if (last) done_(&transfer);
}

std::string Transfer::reason() const {
  if (!error_text.empty()) return in_words(error, error_text);
  if (error == ENODATA) return in_words(error, "the file is shorter than what was written to it");
  if (error == EBADMSG) return in_words(error, "the file holds other bytes than were written to it");
  return in_words(error, "");
}

}  // namespace teraio
