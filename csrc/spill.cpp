#include "spill.h"

#include <fcntl.h>
#include <sys/mman.h>
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
#include "sizes.h"

namespace teraio {
namespace {

constexpr size_t kThreadsPerChannel = 2;
// A call of a path for devices costs more than a copy of fewer bytes.
constexpr size_t kLeastForDevicePath = size_t{1} << 20;

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
  struct statvfs fs {};  // asked before: what is reserved in vain takes all there is
  const uint64_t available = ::fstatvfs(file.fd, &fs) == 0 ? uint64_t{fs.f_bavail} * fs.f_frsize : 0;
  int error = ::posix_fallocate(file.fd, static_cast<off_t>(file.reserved), static_cast<off_t>(nbytes - file.reserved));
  if (error == EOPNOTSUPP || error == EINVAL) {
    error = ::ftruncate(file.fd, static_cast<off_t>(nbytes)) == 0 ? 0 : errno;
  }
  if (error != 0) {
    [[maybe_unused]] const int given_back = ::ftruncate(file.fd, static_cast<off_t>(file.reserved));
    fail("can't reserve " + format_size(nbytes - file.reserved) + " of spill space (" + format_size(available) + " are free) in",
         file.path, error, "Free space there, or pass another or a further folder as `ssd`.");
  }
  file.reserved = nbytes;
}

void SpillSpace::set_device_path(Path path, const std::vector<bool>& takes) {
  for (size_t i = 0; i < files_.size(); ++i) files_[i].by_device_path = takes.at(i);
  device_path_ = std::move(path);
}

void SpillSpace::forget_device_path() {
  for (File& file : files_) file.by_device_path = false;
  device_path_.reset();
}

FolderSpeed SpillSpace::measure(size_t folder, size_t nbytes, const TestMemory& test) {
  File& file = files_.at(folder);
  std::optional<StagedPath> staged;
  if (!test.device.is_cpu() && !file.by_device_path) staged.emplace(test, kThreadsPerChannel);
  const Path& path = test.device.is_cpu() ? host_path_ : file.by_device_path ? *device_path_ : staged->path();
  nbytes = round_up(nbytes, path.request);
  reserve_file(file, nbytes);
  Moved failed;
  const FolderSpeed speed = test_speed(path, folder, file.fd, nbytes, kThreadsPerChannel, test, &failed);
  if (failed.error != 0) fail("the speed test failed in", file.path, failed, "Pass another folder as `ssd`.");
  return speed;
}

void SpillSpace::start(const std::vector<unsigned>& weights, const Accelerator* accelerator) {
  // Largest remaining share first spreads each file's units evenly over the pattern.
  const size_t total = [&] {
    size_t sum = 0;
    for (const unsigned w : weights) sum += w;
    return sum;
  }();
  const bool by_device_path = std::any_of(files_.begin(), files_.end(), [](const File& f) { return f.by_device_path; });
  stripe_unit_ = std::max(host_path_.stripe_unit, by_device_path ? device_path_->stripe_unit : 0);
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
  const size_t threads = kThreadsPerChannel * files_.size();
  start_threads(reads_, threads);
  start_threads(writes_, threads);
  // Others may be waiting for the GIL, see Transfer::natively.
  if (accelerator_ != nullptr && needs_python()) start_threads(native_writes_, kThreadsPerChannel);
}

size_t SpillSpace::encoding_threads() const { return 2 * kThreadsPerChannel * files_.size(); }

bool SpillSpace::needs_python() const { return device_path_ || codec_; }

void SpillSpace::start_threads(Channel& channel, size_t count) {
  const bool encodes = codec_ && &channel != &native_writes_;
  if (encodes && accelerator_ != nullptr) channel.codec_stream = accelerator_->new_stream();
  for (size_t i = 0; i < count; ++i) {
    Worker worker;
    if (accelerator_ != nullptr) {
      staging_.push_back(static_cast<char*>(PagePool().take(kStagingBytes)));
      ::madvise(staging_.back(), kStagingBytes, MADV_DONTFORK);  // as host tiers
      worker.staging = Staging{staging_.back(), accelerator_->new_stream()};
    }
    if (encodes) {
      worker.buffer = codec_->buffers.at(threads_.size());
      worker.codec_stream = channel.codec_stream;
    }
    threads_.emplace_back([this, &channel, worker] { run(channel, worker); });
  }
}

std::vector<std::pair<char*, size_t>> SpillSpace::staging_memory() const {
  std::vector<std::pair<char*, size_t>> buffers;
  for (char* memory : staging_) buffers.emplace_back(memory, kStagingBytes);
  return buffers;
}

void SpillSpace::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  reads_.work.notify_all();
  writes_.work.notify_all();
  native_writes_.work.notify_all();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  for (auto& file : files_) ::close(file.fd);
  files_.clear();
  for (char* memory : staging_) {
    PagePool pool;
    pool.give(memory, kStagingBytes);
    pool.trim(kStagingBytes);
  }
  staging_.clear();
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
  if (const auto extent = extents_.allocate(nbytes)) return *extent;
  // Growing by an eighth at least keeps the number of reservations small, where there is room for so much.
  try {
    reserve(reserved_ + std::max(nbytes, reserved_ / 8));
  } catch (const SpillError&) {
    reserve(reserved_ + nbytes);
  }
  return *extents_.allocate(nbytes);
}

std::vector<SpillSpace::Piece> SpillSpace::pieces_of(Transfer* transfer) const {
  std::vector<Piece> pieces;
  const uint64_t units = pattern_.size();
  uint64_t at = transfer->extent.offset;
  const uint64_t end = at + transfer->extent.nbytes;
  while (at < end) {
    const uint64_t unit = at / stripe_unit_;
    const size_t slot = static_cast<size_t>(unit % units);
    const size_t file = pattern_[slot];
    const uint64_t file_unit = unit / units * pattern_units_[file] + unit_rank_[slot];
    const uint64_t inside = at % stripe_unit_;
    const size_t n = static_cast<size_t>(std::min({stripe_unit_ - inside, end - at, largest_request(*transfer, file)}));
    const uint64_t file_offset = file_unit * stripe_unit_ + inside;
    const size_t memory_offset = static_cast<size_t>(at - transfer->extent.offset);
    Piece* last = pieces.empty() ? nullptr : &pieces.back();
    // Neighbouring units of one file make one request, up to its best size.
    if (last != nullptr && last->file == file && last->file_offset + last->nbytes == file_offset &&
        last->nbytes + n <= largest_request(*transfer, file)) {
      last->nbytes += n;
    } else {
      pieces.push_back({transfer, pieces.size(), file, file_offset, memory_offset, n});
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

SpillSpace::Channel& SpillSpace::channel_of(const Transfer& transfer) {
  if (transfer.direction == Transfer::Direction::kRead) return reads_;
  return transfer.natively && needs_python() && !transfer.device.is_cpu() ? native_writes_ : writes_;
}

void SpillSpace::submit(Transfer* transfer, bool urgent) {
  const auto pieces = pieces_of(transfer);
  transfer->pieces_left = pieces.size();
  if (transfer->encoding) transfer->encoding->pieces.resize(pieces.size());
  Channel& channel = channel_of(*transfer);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    channel.queue.insert(urgent ? channel.queue.begin() : channel.queue.end(), pieces.begin(), pieces.end());
  }
  channel.work.notify_all();
}

void SpillSpace::promote(Transfer* transfer) {
  Channel& channel = channel_of(*transfer);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::stable_partition(channel.queue.begin(), channel.queue.end(),
                        [&](const Piece& piece) { return piece.transfer == transfer; });
}

bool SpillSpace::take_from_python(Transfer* transfer) {
  Channel& channel = channel_of(*transfer);
  {
    const auto is_its = [&](const Piece& piece) { return piece.transfer == transfer; };
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto waiting = std::count_if(channel.queue.begin(), channel.queue.end(), is_its);
    if (static_cast<size_t>(waiting) < pieces_of(transfer).size()) return false;
    channel.queue.erase(std::remove_if(channel.queue.begin(), channel.queue.end(), is_its), channel.queue.end());
  }
  transfer->natively = true;
  transfer->encoding.reset();
  submit(transfer, true);
  return true;
}

Work SpillSpace::take_work() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return throughput_.take();
}

bool SpillSpace::on_io_thread() { return t_io_thread; }

void SpillSpace::run(Channel& channel, const Worker& worker) {
  t_io_thread = true;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    channel.work.wait(lock, [&] { return stopping_ || !channel.queue.empty(); });
    if (stopping_) return;
    const Piece piece = channel.queue.front();
    channel.queue.pop_front();
    const bool write = &channel != &reads_;
    throughput_.begin(write);
    lock.unlock();
    const size_t moved = move(piece, worker);
    lock.lock();
    throughput_.end(write, moved);
  }
}

bool SpillSpace::staged(const Transfer& transfer, size_t file, size_t nbytes) const {
  if (transfer.device.is_cpu() || accelerator_ == nullptr) return false;
  return transfer.natively || !files_[file].by_device_path || nbytes < kLeastForDevicePath;
}

size_t SpillSpace::largest_request(const Transfer& transfer, size_t file) const {
  const auto largest = [&] {
    if (transfer.device.is_cpu()) return host_path_.request;
    return staged(transfer, file, transfer.nbytes) || !device_path_ ? kStagingBytes : device_path_->request;
  };
  return transfer.encoding ? std::min(largest(), codec_->piece_nbytes) : largest();
}

Moved SpillSpace::move_range(const Piece& piece, const Range& range, const Worker& worker, uint64_t* checksum) const {
  const Transfer& transfer = *piece.transfer;
  if (!transfer.device.is_cpu()) return move_device_range(piece, range, worker, checksum);
  Moved moved = move_all(host_path_, {piece.file, files_[piece.file].fd,
                                      transfer.direction == Transfer::Direction::kWrite, range.memory, transfer.device,
                                      range.nbytes, piece.file_offset});
  *checksum = sample_checksum(range.memory, range.nbytes, piece.memory_offset);
  return moved;
}

// Whole pages may go by a path; the end of a storage that ends within a page is staged, because behind it lies memory
// of somebody else.
Moved SpillSpace::move_device_range(const Piece& piece, const Range& range, const Worker& worker,
                                    uint64_t* checksum) const {
  const Transfer& transfer = *piece.transfer;
  const File& file = files_[piece.file];
  Request request{piece.file, file.fd, transfer.direction == Transfer::Direction::kWrite,
                  range.memory, transfer.device, range.nbytes, piece.file_offset};
  if (range.staged) {
    for (const c10::Event& event : transfer.after) event.block(worker.staging->stream);
    Moved moved = move_staged(*accelerator_, *worker.staging, request, range.data, piece.memory_offset, checksum);
    if (file.by_device_path) *checksum = 0;  // what one way writes, the other may read
    return moved;
  }
  if (!device_path_) return {0, ENOTSUP, "nothing was set up to move memory of " + transfer.device.str()};
  Accelerator::wait_for(transfer.after);
  request.nbytes = accelerator_ == nullptr ? range.data : range.data / kPage * kPage;
  Moved moved = move_all(*device_path_, request);
  if (moved.error != 0 || request.nbytes == range.data) return moved;
  Request end = request;
  end.memory += request.nbytes;
  end.offset += request.nbytes;
  end.nbytes = kPage;
  uint64_t unused = 0;
  Moved last = move_staged(*accelerator_, *worker.staging, end, range.data - request.nbytes, 0, &unused);
  last.nbytes += moved.nbytes;
  return last;
}

Moved SpillSpace::move_plain(const Piece& piece, const Worker& worker, uint64_t* checksum) const {
  const Transfer& transfer = *piece.transfer;
  const size_t data = std::min(piece.nbytes, transfer.nbytes - std::min(transfer.nbytes, piece.memory_offset));
  const bool by_host = staged(transfer, piece.file, transfer.encoding ? piece.nbytes : transfer.nbytes);
  return move_range(piece, {transfer.memory + piece.memory_offset, piece.nbytes, data, by_host}, worker, checksum);
}

// [Note: encoded pieces]
// A piece is encoded into the thread's own buffer and written from there, or read to there and decoded. On a device
// the codec works on a stream of its own, behind the transfer's events, and the host waits for it, for what takes the
// buffer over may know no streams. What is encoded may change meanwhile, as an op may want it back and write to it;
// then the copy is thrown away when it is done, but the codec must cope with it.
Moved SpillSpace::move_encoded(const Piece& piece, const Worker& worker, uint64_t* checksum) const {
  Transfer& transfer = *piece.transfer;
  Encoding& encoding = *transfer.encoding;
  EncodedPiece& encoded = encoding.pieces[piece.number];
  Coding coding{encoding.codec, encoding.dtype, transfer.device, worker.codec_stream, transfer.memory + piece.memory_offset,
                std::min(piece.nbytes, encoding.nbytes - std::min(encoding.nbytes, piece.memory_offset)),
                worker.buffer, encoded.nbytes};
  const auto synchronize = [&] {
    if (coding.stream) accelerator_->synchronize(*coding.stream);
  };
  const bool write = transfer.direction == Transfer::Direction::kWrite;
  if (coding.stream && (write || encoded.nbytes > 0)) {
    for (const c10::Event& event : transfer.after) event.block(*coding.stream);
  }
  if (write) {
    encoded.nbytes = codec_->encode(coding);
    synchronize();
    if (round_up(encoded.nbytes, kPage) >= piece.nbytes) encoded.nbytes = 0;
  }
  if (encoded.nbytes == 0) return move_plain(piece, worker, checksum);
  const size_t nbytes = round_up(encoded.nbytes, kPage);
  const Range range{worker.buffer, nbytes, nbytes, staged(transfer, piece.file, nbytes)};
  Moved moved = move_range(piece, range, worker, checksum);
  if (write) encoded.checksum = *checksum;
  if (moved.error == 0 && encoded.checksum != *checksum) moved = {0, EBADMSG, ""};
  if (write || moved.error != 0) return moved;
  codec_->decode(coding);
  synchronize();
  return moved;
}

size_t SpillSpace::move(const Piece& piece, const Worker& worker) {
  Transfer& transfer = *piece.transfer;
  if (const unsigned max_us = max_delay_us_) {
    static thread_local std::minstd_rand random(std::random_device{}());
    ::usleep(static_cast<useconds_t>(random() % max_us));
  }
  uint64_t checksum = 0;
  Moved moved;
  try {
    moved = transfer.encoding ? move_encoded(piece, worker, &checksum) : move_plain(piece, worker, &checksum);
  } catch (const std::exception& failure) {
    moved = {0, EIO, failure.what()};
  }
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
    transfer.moved += moved.nbytes;
    last = --transfer.pieces_left == 0;
  }
  if (last) done_(&transfer);
  return moved.nbytes;
}

}  // namespace teraio
