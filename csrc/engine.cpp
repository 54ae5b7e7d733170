#include "engine.h"

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "errors.h"
#include "gil.h"
#include "guard.h"

namespace teraio {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string mib(uint64_t nbytes) {
  char text[64];
  std::snprintf(text, sizeof text, "%llu bytes (%.1f MiB)", static_cast<unsigned long long>(nbytes),
                static_cast<double>(nbytes) / 1048576.0);
  return text;
}

constexpr size_t kStallsKept = 32;
constexpr size_t kVictimsKept = 256;
constexpr uint64_t kVictimsLast = 64;  // ops

std::vector<Stall> longest(std::vector<Stall> stalls) {
  std::stable_sort(stalls.begin(), stalls.end(), [](const Stall& a, const Stall& b) { return a.ns > b.ns; });
  if (stalls.size() > kStallsKept) stalls.resize(kStallsKept);
  return stalls;
}

}  // namespace

uint32_t signature_of(uint32_t name, uint32_t module, Phase phase) {
  const uint64_t h = (uint64_t{name} << 34) ^ (uint64_t{module} << 2) ^ static_cast<uint64_t>(phase);
  return static_cast<uint32_t>((h * 0x9E3779B97F4A7C15ull) >> 32);
}

Engine& Engine::instance() {
  // Never destroyed: storages may outlive every static object.
  static Engine* engine = new Engine;
  return *engine;
}

Frame& Engine::frame() {
  static thread_local Frame frame;
  return frame;
}

// ---------------------------------------------------------------- life

void Engine::start(std::unique_ptr<SpillSpace> spill, uint64_t budget, uint64_t min_block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  spill_ = std::move(spill);
  budget_ = budget;
  min_block_ = min_block;
  stats_ = {};
  stats_.peak_bytes = used();
  iteration_begin_ns_ = now_ns();
  active_ = true;
}

void Engine::stop() {
  const GilRelease gil;
  Lock lock(mutex_);
  if (!active_) return;
  budget_ = ~uint64_t{0};
  unfollow_locked();
  recording_.reset();
  watching_ = false;
  std::string failure;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const uint64_t id = blocks_[i]->id;
    try {
      fetch_now(blocks_[i], lock);
    } catch (const SpillError& error) {
      failure = error.msg;
    }
    // Others may have died during the wait, and another block may have taken this place.
    if (i < blocks_.size() && blocks_[i]->id != id) --i;
  }
  while (in_flight_ > 0) wait(lock);
  drain();
  for (Block* block : blocks_) {
    drop_extent(block);
    if (block->state != State::kResident) continue;
    if (c10::StorageImpl* storage = owner(block)) guard::open(*storage);
    block->guarded = false;
  }
  active_ = false;
  auto spill = std::move(spill_);
  pages_.trim(pages_.cached());
  lock.unlock();
  spill.reset();
  if (!failure.empty()) throw SpillError(failure);
}

void Engine::reserve_spill(uint64_t nbytes) {
  const GilRelease gil;
  const Lock lock(mutex_);
  spill_->reserve(nbytes);
}

// ---------------------------------------------------------------- memory

void Engine::raise_if_failed(const Frame& f) {
  if (f.error.empty()) return;
  if (f.over_budget) throw BudgetError(f.error);
  throw SpillError(f.error);
}

Block* Engine::allocate(size_t nbytes, bool pin_to_frame) {
  Frame& f = frame();
  raise_if_failed(f);
  auto block = std::make_unique<Block>();
  block->nbytes = round_up(nbytes, kPage);
  std::optional<GilRelease> gil;
  Lock lock(mutex_);
  if (active() && !forked_ && used() + block->nbytes > budget_) {
    lock.unlock();
    gil.emplace();
    lock.lock();
    make_room(block->nbytes, lock);
  }
  block->memory = take_memory(block.get());
  enroll(block.get(), f, pin_to_frame);
  return block.release();
}

Block* Engine::allocate_without_memory(size_t nbytes) {
  auto block = std::make_unique<Block>();
  block->nbytes = round_up(nbytes, kPage);
  block->exempt = true;
  const std::lock_guard<std::mutex> lock(mutex_);
  enroll(block.get(), frame(), true);
  return block.release();
}

void Engine::enroll(Block* block, Frame& f, bool pin_to_frame) {
  block->id = next_block_++;
  place_of_block_[block->id] = blocks_.size();
  blocks_.push_back(block);
  if (pin_to_frame && f.depth > 0) enter(f);
  logical_ += static_cast<int64_t>(block->nbytes);
  block->last_use = op_counter_;
  if (pin_to_frame && (f.depth > 0 || (f.training && watching_))) {
    f.logical_peak = std::max(f.logical_peak, logical_);
    f.pinned.push_back({block, true, true});
    block->frame = &f;
    block->pins = 1;
  }
}

void Engine::small_allocated(size_t nbytes) {
  raise_if_failed(frame());
  const int64_t small = small_ += static_cast<int64_t>(nbytes);
  if (!active() || forked_) return;
  int64_t peak = small_peak_.load();
  while (small > peak && !small_peak_.compare_exchange_weak(peak, small)) {
  }
  if (used() <= budget_) return;
  const GilRelease gil;
  Lock lock(mutex_);
  try {
    make_room(0, lock);
  } catch (...) {
    small_ -= static_cast<int64_t>(nbytes);
    throw;
  }
}

void Engine::release_free_pages() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    pages_.trim(pages_.cached());
  }
  ::malloc_trim(0);
}

void Engine::storage_died(Block* block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  block->dead = true;
  block->storage.reset();
  logical_ -= static_cast<int64_t>(block->nbytes);
  unbind(block);
  if (recording_) {
    const auto op = static_cast<int64_t>(recording_->ops.size());
    recording_->deaths.push_back({block->id, frame().depth > 0 ? op : op - 1});
  }
  if (block->transfer == nullptr) {
    if (block->memory != nullptr) give_memory(block);
    bury(block);
  }
  if (!fetch_queue_.empty()) start_waiting_fetches();
  notify();
}

char* Engine::take_memory(Block* block) {
  char* memory = block->address;
  if (memory != nullptr) {
    ::mprotect(memory, block->nbytes, PROT_READ | PROT_WRITE);
  } else {
    memory = static_cast<char*>(pages_.take(block->nbytes));
  }
  if (poison_) std::memset(memory, 0xFF, block->nbytes);
  used_ += block->nbytes;
  note_peak();
  // Pages kept for reuse are memory too: together with what is in use they stay within the budget.
  const uint64_t room = budget_ > used() ? budget_ - used() : 0;
  if (pages_.cached() > room) pages_.trim(pages_.cached() - room);
  return memory;
}

void Engine::give_memory(Block* block) {
  if (poison_) std::memset(block->memory, 0xFF, block->nbytes);
  if (block->address == nullptr) {
    pages_.give(block->memory, block->nbytes);
  } else if (block->dead) {
    ::munmap(block->address, block->nbytes);
    block->address = nullptr;
  } else {
    ::madvise(block->address, block->nbytes, MADV_DONTNEED);
    ::mprotect(block->address, block->nbytes, PROT_NONE);
  }
  block->memory = nullptr;
  used_ -= block->nbytes;
}

void Engine::drop_extent(Block* block) {
  if (block->extent && block->transfer == nullptr) {
    if (spill_) spill_->free(*block->extent);
    block->extent.reset();
    block->copied_version = 0;
  }
}

void Engine::bury(Block* block) {
  if (block->pins > 0 || block->transfer != nullptr) return;
  drop_extent(block);
  if (block->address != nullptr) ::munmap(block->address, block->nbytes);
  const size_t at = place_of_block_.at(block->id);
  Block* last = blocks_.back();
  blocks_[at] = last;
  place_of_block_[last->id] = at;
  blocks_.pop_back();
  place_of_block_.erase(block->id);
  delete block;
}

void Engine::note_peak() { stats_.peak_bytes = std::max(stats_.peak_bytes, used()); }

void Engine::notify() {
  ++events_;
  if (waiters_ > 0) changed_.notify_all();
}

// ---------------------------------------------------------------- ops

c10::StorageImpl* Engine::owner(Block* block) const {
  if (block->dead || !block->storage) return nullptr;
  c10::StorageImpl* storage = block->storage->_unsafe_get_target();
  // A data pointer can be moved to another storage; the next op that gets that one links them anew.
  return storage->_mutable_data_ptr_no_checks().get_context() == block ? storage : nullptr;
}

void Engine::link(Block* block, c10::StorageImpl* storage) {
  if (block->storage && block->storage->_unsafe_get_target() == storage) return;
  block->storage.emplace(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage));
}

void Engine::mark_written(Block* block) {
  ++block->version;
  // While the block is away its extent holds the only copy; it goes once the data is in memory and changed.
  if (block->memory != nullptr) drop_extent(block);
}

void Engine::pin(Frame& f, const Operand& operand) {
  Block* block = operand.block;
  if (block->frame == &f) {
    if (operand.write) {
      const auto entry = std::find_if(f.pinned.rbegin(), f.pinned.rend(),
                                      [&](const Frame::Pinned& pinned) { return pinned.block == block; });
      if (entry != f.pinned.rend()) entry->write = true;
    }
  } else {
    f.pinned.push_back({block, operand.write, false});
    block->frame = &f;
    ++block->pins;
  }
  if (operand.write) mark_written(block);
  open(block, operand.storage);
}

// Makes a block that is in memory accessible; one that is leaving stays.
void Engine::open(Block* block, c10::StorageImpl* storage) {
  if (block->state == State::kLeaving) {
    block->state = State::kResident;
    leaving_ -= block->nbytes;
  }
  if (block->state != State::kResident) return;
  if (storage->_mutable_data_ptr_no_checks().get() != block->memory) guard::set_memory(*storage, block->memory);
  if (block->guarded) {
    guard::open(*storage);
  } else if (!block->exempt) {
    block->guarded = true;
    guard::set_message(*storage, describe_guard(block));
  }
}

// From now on the block may leave, and only ops and holders that pin it can reach its data.
void Engine::shut(Block* block, c10::StorageImpl* storage) {
  if (block->guarded || block->exempt || block->state != State::kResident) return;
  block->guarded = true;
  guard::set_message(*storage, describe_guard(block));
  if (block->pins == 0) guard::close(*storage);
}

void Engine::unpin(Block* block) {
  --block->pins;
  block->frame = nullptr;
  if (block->dead) {
    bury(block);
  } else if (block->pins == 0 && block->guarded && !block->exempt) {
    if (c10::StorageImpl* storage = owner(block)) guard::close(*storage);
  }
}

void Engine::enter(Frame& f) {
  if (f.entered) return;
  f.entered = true;
  ++pinning_threads_;
  f.logical_begin = f.logical_peak = logical_;
}

void Engine::begin(Frame& f, const std::vector<Operand>& operands) {
  // What this frame has pinned stays pinned and open until it ends, so nested calls mostly find nothing to do.
  const bool known = std::all_of(operands.begin(), operands.end(), [&](const Operand& operand) {
    return !operand.write && operand.block->frame.load(std::memory_order_relaxed) == &f;
  });
  if (known) return;
  std::optional<GilRelease> gil;
  Lock lock(mutex_);
  enter(f);
  if (!done_.empty()) drain();
  bool missing = false;
  for (const Operand& operand : operands) {
    link(operand.block, operand.storage);
    if (!operand.data) {
      shut(operand.block, operand.storage);  // all that an op may ever get of a gradient is a view
      continue;
    }
    pin(f, operand);
    missing = missing || operand.block->state != State::kResident;
  }
  if (!missing || forked_) return;
  lock.unlock();
  gil.emplace();
  lock.lock();
  make_resident(f, lock);
}

// An exception can't leave an observer's callback. So the failure is kept: the op's next allocation raises
// it with its type, and the guard raises its text to an op that reads or writes the missing operand.
void Engine::make_resident(Frame& f, Lock& lock) {
  try {
    for (size_t i = 0; i < f.pinned.size(); ++i) {
      Block* block = f.pinned[i].block;
      if (block->dead) continue;
      if (block->state == State::kAway) {
        make_room(block->nbytes, lock, block->trace_index);
        if (block->state == State::kAway && !block->dead) start_coming(block, true);
      }
      if (block->state == State::kComing && block->transfer != nullptr) spill_->promote(block->transfer);
    }
    for (size_t i = 0; i < f.pinned.size(); ++i) {
      if (!f.pinned[i].block->dead) fetch_now(f.pinned[i].block, lock);
    }
  } catch (const BudgetError& error) {
    f.over_budget = true;
    f.error = error.msg;
  } catch (const SpillError& error) {
    f.over_budget = false;
    f.error = error.msg;
  } catch (const std::bad_alloc&) {
    f.over_budget = true;
    f.error = "the system has no memory left, though the budget has. Use a smaller memory_budget.";
  }
  for (const auto& pinned : f.pinned) {
    c10::StorageImpl* storage = owner(pinned.block);
    if (storage == nullptr) continue;
    if (pinned.block->state == State::kResident) {
      open(pinned.block, storage);
    } else {
      guard::set_message(*storage, (f.over_budget ? "teraio.BudgetError: " : "teraio.SpillError: ") + f.error);
    }
  }
}

bool Engine::counts(const Frame& f) const { return f.training && watching_ && !f.pinned.empty(); }

void Engine::end_locked(Frame& f, const std::optional<Place>& place) {
  if (!done_.empty()) drain();
  ++op_counter_;
  if (f.entered) --pinning_threads_;
  f.entered = false;
  if (place) count_use(f, *place);
  for (const auto& pinned : f.pinned) {
    if (f.opaque && !pinned.block->dead) {
      pinned.block->exempt = true;
      if (c10::StorageImpl* storage = owner(pinned.block)) guard::open(*storage);
    }
    pinned.block->last_use = op_counter_;
    unpin(pinned.block);
  }
  f.pinned.clear();
  f.opaque = false;
  f.error.clear();
  if (schedule_) run_due_actions();
  if (!fetch_queue_.empty()) start_waiting_fetches();
  if (waiters_ > 0) notify();
}

void Engine::count_use(Frame& f, const Place& place) {
  if (place.phase == Phase::kBackward && place.module != last_backward_module_) {
    last_backward_module_ = place.module;
    anchor_locked(anchor_key(kBackwardAnchor, place.module));
  }
  ++stats_.ops;
  if (recording_) {
    const auto op = static_cast<uint32_t>(recording_->ops.size());
    int64_t born = 0;
    for (const auto& pinned : f.pinned) {
      if (pinned.block->dead) continue;
      if (pinned.born) {
        born += static_cast<int64_t>(pinned.block->nbytes);
        recording_->births.push_back({pinned.block->id, pinned.block->nbytes, op});
      }
      recording_->uses.push_back({pinned.block->id, op, pinned.write});
    }
    const int64_t end_ns = now_ns();
    const int64_t stall_ns = stats_.stall_ns;
    const int64_t duration = (end_ns - last_op_end_ns_) - (stall_ns - last_op_stall_ns_);
    last_op_end_ns_ = end_ns;
    last_op_stall_ns_ = stall_ns;
    recording_->ops.push_back({f.name, place.module, static_cast<uint8_t>(place.phase), std::max<int64_t>(0, duration),
                               std::max<int64_t>(0, f.logical_peak - f.logical_begin - born), f.calls});
  }
  if (!schedule_) return;
  const int64_t at = schedule_->match(signature_of(f.name, place.module, place.phase));
  if (at < 0) {
    ++stats_.drift_ops;
    return;
  }
  uint32_t next = schedule_->birth_offsets[static_cast<size_t>(at)];
  const uint32_t last = schedule_->birth_offsets[static_cast<size_t>(at) + 1];
  for (const auto& pinned : f.pinned) {
    if (!pinned.born || pinned.block->dead || next == last) continue;
    bind(pinned.block, schedule_->births[next++]);
  }
}

// A block is bound to at most one storage of the trace, and the other way round.
void Engine::bind(Block* block, int32_t storage) {
  Block*& slot = bound_[static_cast<size_t>(storage)];
  if (slot != nullptr) slot->trace_index = -1;
  unbind(block);
  block->trace_index = storage;
  slot = block;
}

void Engine::unbind(Block* block) {
  if (block->trace_index < 0) return;
  bound_[static_cast<size_t>(block->trace_index)] = nullptr;
  block->trace_index = -1;
}

// ---------------------------------------------------------------- moving

void Engine::wait(Lock& lock, int32_t storage, bool memory) {
  if (!done_.empty()) {  // what the caller waits for may be here already
    drain();
    return;
  }
  const int64_t begin = now_ns();
  const uint64_t seen = events_;
  ++waiters_;
  changed_.wait(lock, [&] { return events_ != seen || !done_.empty(); });
  --waiters_;
  if (frame().training) note_stall(storage, memory, now_ns() - begin);
  drain();
}

void Engine::note_stall(int32_t storage, bool memory, int64_t ns) {
  stats_.stall_ns += ns;
  const uint32_t op = schedule_ ? schedule_->position() : static_cast<uint32_t>(stats_.ops);
  if (!stalls_.empty()) {
    Stall& last = stalls_.back();
    if (last.op == op && last.storage == storage && last.memory == memory) {
      last.ns += ns;
      return;
    }
  }
  stalls_.push_back({op, storage, memory, ns});
}

void Engine::fetch_now(Block* block, Lock& lock) {
  const uint64_t id = block->id;
  for (int tries = 0; block->state != State::kResident;) {
    if (block->state == State::kLeaving) {
      block->state = State::kResident;
      leaving_ -= block->nbytes;
      return;
    }
    if (block->state == State::kAway) {
      // A fetch ahead of time may have failed for a reason that is gone; one that was asked for now is not tried on.
      if (tries++ == 2) throw SpillError(block->failure);
      make_room(block->nbytes, lock, block->trace_index);
      if (place_of_block_.count(id) == 0 || block->dead) return;
      if (block->state == State::kAway) start_coming(block, true);
      continue;
    }
    wait(lock, block->trace_index);
    if (place_of_block_.count(id) == 0 || block->dead) return;
  }
}

// [Note: making room]
// An op that needs memory waits for exactly the bytes it lacks. What leaves already comes first; then the block
// used again last (by the plan, or by how long it has not been used) leaves as well. An error is raised only when
// nothing can leave, nothing is on its way, and no other thread's op could end and unpin something.
void Engine::make_room(uint64_t nbytes, Lock& lock, int32_t storage) {
  const uint64_t failures = write_failures_;
  const int self = frame().entered ? 1 : 0;
  for (;;) {
    if (!done_.empty()) drain();
    if (used() + nbytes <= budget_) return;
    if (write_failures_ != failures) throw SpillError(write_failure_);
    const uint64_t lacking = used() + nbytes - budget_;
    if (leaving_ < lacking) {
      if (Block* leaving = victim()) {
        start_leaving(leaving, true);
        continue;
      }
      if (in_flight_ == 0 && pinning_threads_ - waiting_threads_ - self <= 0) throw BudgetError(over_budget(nbytes));
    }
    waiting_threads_ += self;
    wait(lock, storage, true);
    waiting_threads_ -= self;
  }
}

bool Engine::can_leave(const Block* block) const {
  return block->state == State::kResident && block->pins == 0 && block->guarded && !block->exempt && !block->dead &&
         (block->transfer == nullptr || block->transfer_version == block->version) && owner(const_cast<Block*>(block));
}

// Looking at all blocks finds a batch of victims: what is not used meanwhile stays the right choice for a while.
Block* Engine::victim() {
  if (op_counter_ - victims_found_at_ > kVictimsLast) victims_.clear();
  bool looked = false;
  for (;;) {
    while (!victims_.empty()) {
      const Victim victim = victims_.back();
      victims_.pop_back();
      const auto found = place_of_block_.find(victim.block);
      if (found == place_of_block_.end()) continue;
      Block* block = blocks_[found->second];
      if (block->last_use == victim.last_use && can_leave(block)) return block;
    }
    if (looked) return nullptr;
    find_victims();
    looked = true;
  }
}

void Engine::find_victims() {
  victims_found_at_ = op_counter_;
  for (const Block* block : blocks_) {
    if (!can_leave(block)) continue;
    uint64_t distance = schedule_ && block->trace_index >= 0 ? schedule_->distance(block->trace_index)
                                                             : op_counter_ - block->last_use;
    if (block->published_iteration == iteration_) distance = 0;  // somebody may still use its address
    victims_.push_back({block->id, block->last_use, distance});
  }
  const auto farther = [](const Victim& a, const Victim& b) { return a.distance > b.distance; };
  const auto kept = victims_.begin() + static_cast<int64_t>(std::min(victims_.size(), kVictimsKept));
  std::partial_sort(victims_.begin(), kept, victims_.end(), farther);
  victims_.erase(kept, victims_.end());
  std::reverse(victims_.begin(), victims_.end());
}

void Engine::start_leaving(Block* block, bool urgent, std::optional<uint64_t> planned_offset) {
  if (block->transfer != nullptr) {  // its copy is still being written, and nothing has changed it since
    block->state = State::kLeaving;
    leaving_ += block->nbytes;
    return;
  }
  if (block->clean()) {
    detach(block);
    return;
  }
  drop_extent(block);
  if (planned_offset) {
    const Extent extent{*planned_offset, block->nbytes};
    if (spill_->allocate_at(extent)) block->extent = extent;
  }
  if (!block->extent) block->extent = spill_->allocate(block->nbytes);
  block->state = State::kLeaving;
  leaving_ += block->nbytes;
  transfer(block, Transfer::Direction::kWrite, urgent);
}

void Engine::start_coming(Block* block, bool urgent) {
  block->memory = take_memory(block);
  block->state = State::kComing;
  transfer(block, Transfer::Direction::kRead, urgent);
}

void Engine::transfer(Block* block, Transfer::Direction direction, bool urgent) {
  auto* transfer = new Transfer;
  transfer->direction = direction;
  transfer->memory = block->memory;
  transfer->extent = *block->extent;
  transfer->user = block;
  block->transfer = transfer;
  block->transfer_version = block->version;
  ++in_flight_;
  spill_->submit(transfer, urgent);
}

void Engine::transfer_done(Transfer* transfer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  done_.push_back(transfer);
  any_done_ = true;
  changed_.notify_all();
}

void Engine::drain() {
  if (done_.empty()) return;
  std::vector<Transfer*> done;
  done.swap(done_);
  any_done_ = false;
  for (Transfer* transfer : done) finish(transfer);
  if (!fetch_queue_.empty()) start_waiting_fetches();
  notify();
}

void Engine::finish(Transfer* transfer) {
  Block* block = static_cast<Block*>(transfer->user);
  const bool write = transfer->direction == Transfer::Direction::kWrite;
  if (!write && transfer->error == 0 && transfer->checksum != block->checksum) {
    transfer->error = EBADMSG;
    transfer->error_offset = transfer->extent.offset;
    transfer->error_path = spill_->folders_of(transfer);
  }
  const int error = transfer->error;
  if (write) block->checksum = transfer->checksum;
  block->transfer = nullptr;
  --in_flight_;
  if (error != 0) {
    block->failure = std::string(write ? "writing " : "reading ") + describe(block) + (write ? " to" : " from") +
                     " the spill file in " + transfer->error_path + " failed at offset " +
                     std::to_string(transfer->error_offset) + ": " +
                     (error == ENODATA   ? "the file is shorter than what was written to it"
                      : error == EBADMSG ? "the file holds other bytes than were written to it"
                                         : std::strerror(error)) +
                     " (errno " + std::to_string(error) + "). " +
                     (write ? "The data is still in memory. Free space there or pass another folder as `ssd`."
                            : "Check the drive; if it is the file system that failed, pass another folder as `ssd`.");
  }
  delete transfer;
  if (write) {
    if (error == 0) stats_.written_bytes += block->nbytes;
    const bool leaving = block->state == State::kLeaving;
    if (leaving) leaving_ -= block->nbytes;
    if (leaving) block->state = State::kResident;
    if (error != 0) {
      write_failure_ = block->failure;
      ++write_failures_;
      drop_extent(block);
    } else if (block->transfer_version == block->version && !block->dead) {
      block->copied_version = block->version;
      if (leaving && block->pins == 0) detach(block);
    } else {
      drop_extent(block);
    }
  } else if (error != 0) {
    give_memory(block);
    block->state = State::kAway;
  } else {
    stats_.read_bytes += block->nbytes;
    block->state = State::kResident;
    if (c10::StorageImpl* storage = owner(block)) {
      guard::set_memory(*storage, block->memory);
      guard::set_message(*storage, describe_guard(block));
      if (block->pins > 0) guard::open(*storage);
    }
  }
  if (block->dead) {
    if (block->memory != nullptr) give_memory(block);
    bury(block);
  }
}

void Engine::detach(Block* block) {
  c10::StorageImpl* storage = owner(block);
  if (storage == nullptr) return;
  guard::close(*storage);
  guard::set_memory(*storage, nullptr);
  give_memory(block);
  block->state = State::kAway;
}

void Engine::start_waiting_fetches() {
  while (!fetch_queue_.empty()) {
    const auto found = place_of_block_.find(fetch_queue_.front());
    Block* block = found == place_of_block_.end() ? nullptr : blocks_[found->second];
    if (block != nullptr && block->state == State::kLeaving) return;  // it can come when it has gone
    if (block != nullptr && block->state == State::kAway && !block->dead) {
      if (used() + block->nbytes > budget_) return;
      start_coming(block, false);
    }
    fetch_queue_.pop_front();
  }
}

void Engine::run_due_actions() {
  for (int64_t at = schedule_->due(); at >= 0; at = schedule_->due()) {
    const auto op = static_cast<size_t>(at);
    for (uint32_t i = schedule_->action_offsets[op]; i < schedule_->action_offsets[op + 1]; ++i) {
      const Schedule::Action action = schedule_->actions[i];
      Block* block = bound_[static_cast<size_t>(action.storage)];
      if (block == nullptr) continue;
      if (action.fetch) {
        if (block->state == State::kAway || block->state == State::kLeaving) fetch_queue_.push_back(block->id);
      } else if (can_leave(block) && block->published_iteration != iteration_) {
        try {
          start_leaving(block, false, static_cast<uint64_t>(action.extent));
        } catch (const SpillError& error) {
          // Nothing is lost: the data stays, and an op that lacks the memory raises the cause.
          write_failure_ = error.msg;
        }
      }
    }
  }
}

// ---------------------------------------------------------------- places, profile, plan

void Engine::anchor(uint64_t key) {
  if (!watching_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  anchor_locked(key);
}

void Engine::anchor_locked(uint64_t key) {
  const uint32_t occurrence = occurrences_[key]++;
  if (recording_) {
    recording_->anchors.push_back({key, occurrence, static_cast<uint32_t>(recording_->ops.size())});
  }
  if (schedule_) schedule_->jump(key, occurrence);
}

IterationStats Engine::end_iteration() {
  const std::lock_guard<std::mutex> lock(mutex_);
  drain();
  const int64_t end = now_ns();
  IterationStats stats = stats_;
  stats.duration_ns = end - iteration_begin_ns_;
  iteration_begin_ns_ = end;
  stats.stalls = longest(std::exchange(stalls_, {}));
  stats_ = {};
  stats_.peak_bytes = used();
  last_op_stall_ns_ = 0;
  ++iteration_;
  occurrences_.clear();
  last_backward_module_ = kNoModule;
  if (schedule_) {
    schedule_->restart();
    for (size_t s = 0; s < bound_.size(); ++s) {
      if (bound_[s] != nullptr && !schedule_->persistent[s]) unbind(bound_[s]);
    }
  }
  return stats;
}

void Engine::record(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  recording_ = on ? std::make_unique<Recording>() : nullptr;
  last_op_end_ns_ = now_ns();
  last_op_stall_ns_ = stats_.stall_ns;
  small_peak_ = small_.load();
  watching_ = recording_ || schedule_;
}

Recording Engine::take_recording() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Recording recording;
  if (recording_) recording = std::move(*recording_);
  recording.untracked_peak_bytes = small_peak_;
  recording_.reset();
  watching_ = schedule_ != nullptr;
  return recording;
}

void Engine::follow(std::unique_ptr<Schedule> schedule, const std::vector<std::pair<int32_t, uint64_t>>& bound) {
  const std::lock_guard<std::mutex> lock(mutex_);
  unfollow_locked();
  schedule_ = std::move(schedule);
  bound_.assign(schedule_->persistent.size(), nullptr);
  for (const auto& [storage, id] : bound) {
    const auto found = place_of_block_.find(id);
    if (found == place_of_block_.end()) continue;
    if (!blocks_[found->second]->dead) bind(blocks_[found->second], storage);
  }
  watching_ = true;
}

void Engine::unfollow() {
  const std::lock_guard<std::mutex> lock(mutex_);
  unfollow_locked();
  watching_ = recording_ != nullptr;
}

void Engine::unfollow_locked() {
  for (Block* block : bound_) {
    if (block != nullptr) unbind(block);
  }
  bound_.clear();
  schedule_.reset();
  fetch_queue_.clear();
}

// ---------------------------------------------------------------- single storages

void Engine::adopt(Block* block, c10::StorageImpl* storage, std::string name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  block->name = std::move(name);
  link(block, storage);
  shut(block, storage);
}

void Engine::hold_locked(Block* block, c10::StorageImpl* storage, Lock& lock) {
  link(block, storage);
  ++block->pins;
  try {
    fetch_now(block, lock);
  } catch (...) {
    unpin(block);
    throw;
  }
  open(block, storage);
}

void Engine::hold(Block* block, c10::StorageImpl* storage) {
  const GilRelease gil;
  Lock lock(mutex_);
  hold_locked(block, storage, lock);
}

void Engine::release(Block* block, bool written) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (written) mark_written(block);
  Frame* frame = block->frame;
  const bool last = block->pins == 1;
  unpin(block);  // the last pin of a dead block takes the block along
  if (!last) block->frame = frame;
  notify();
}

bool Engine::send_away(Block* block, c10::StorageImpl* storage) {
  const GilRelease gil;
  Lock lock(mutex_);
  if (!active()) return false;
  link(block, storage);
  shut(block, storage);
  const uint64_t failures = write_failures_;
  while (block->state != State::kAway) {
    if (block->state == State::kResident) {
      if (write_failures_ != failures) throw SpillError(write_failure_);
      if (!can_leave(block)) return false;
      start_leaving(block, true);
      continue;
    }
    wait(lock);
  }
  return true;
}

void* Engine::publish(Block* block, c10::StorageImpl* storage) {
  const GilRelease gil;
  Lock lock(mutex_);
  hold_locked(block, storage, lock);
  if (block->address == nullptr && !block->exempt) {
    if (block->pins == 1 && block->transfer == nullptr) {
      void* address = ::mmap(nullptr, block->nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (address != MAP_FAILED) {
        std::memcpy(address, block->memory, block->nbytes);
        pages_.give(block->memory, block->nbytes);
        block->memory = block->address = static_cast<char*>(address);
        guard::set_memory(*storage, block->memory);
      }
    }
    if (block->address == nullptr) block->exempt = true;
  }
  block->published_iteration = iteration_;
  mark_written(block);  // whoever has the address may write to it
  void* address = block->memory;
  unpin(block);
  return address;
}

State Engine::state_of(Block* block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  drain();
  return block->state;
}

void Engine::stress(unsigned max_delay_us) {
  const std::lock_guard<std::mutex> lock(mutex_);
  poison_ = max_delay_us > 0;
  if (spill_) spill_->set_delay(max_delay_us);
}

Engine::Totals Engine::totals() {
  const std::lock_guard<std::mutex> lock(mutex_);
  drain();
  uint64_t away = 0;
  for (const Block* block : blocks_) away += block->state == State::kAway ? block->nbytes : 0;
  return {used(), budget_, leaving_, pages_.cached(), spill_ ? spill_->reserved() : 0, blocks_.size(), away};
}

std::vector<Engine::Live> Engine::live_blocks() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Live> live;
  for (const Block* block : blocks_) {
    if (!block->dead) live.push_back({block->id, block->nbytes, block->guarded && !block->exempt});
  }
  return live;
}

uint32_t Engine::intern(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [entry, added] = op_ids_.try_emplace(name, static_cast<uint32_t>(op_names_.size()));
  if (added) op_names_.push_back(name);
  return entry->second;
}

std::vector<std::string> Engine::op_names() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return op_names_;
}

std::string Engine::describe(const Block* block) const {
  return (block->name.empty() ? "a storage" : "the storage " + block->name) + " of " + mib(block->nbytes);
}

// Storages without a name are many and short-lived: formatting their size each time would cost more than the op.
std::string Engine::describe_guard(const Block* block) const {
  return "teraio moves " + (block->name.empty() ? std::string("this storage") : describe(block)) +
         " between memory and SSD; only PyTorch's ops can reach its data at any time. Wrap code that "
         "reads or writes raw memory in `with teraio.resident(tensor):`.";
}

std::string Engine::over_budget(uint64_t nbytes) const {
  const Frame& f = frame();
  uint64_t pinned = 0;
  for (const auto& entry : f.pinned) pinned += entry.block->memory != nullptr ? entry.block->nbytes : 0;
  const std::string op = f.depth > 0 && f.name < op_names_.size() ? "op " + op_names_[f.name] : "an allocation";
  return op + " needs " + mib(nbytes) + " more, holds " + mib(pinned) + " of operands and results, and " +
         mib(used() - pinned) + " beside it can't leave memory now; the budget is " + mib(budget_) +
         ". Pass memory_budget=" + std::to_string(used() + nbytes) +
         " or more (the least that this op works with), or make the op smaller, with a smaller batch for example.";
}

void Engine::after_fork_in_child() {
  // The I/O threads live in the parent only, and the spill space belongs to it.
  forked_ = true;
  for (Block* block : blocks_) {
    if (block->state == State::kResident || block->state == State::kLeaving) continue;
    if (c10::StorageImpl* storage = owner(block)) {
      guard::set_message(*storage, "teraio: " + describe(block) +
                                       " is on SSD, which only the process that called teraio.offload can "
                                       "read. Use it there, or hold it in memory with teraio.resident before the fork.");
    }
  }
  mutex_.unlock();
}

}  // namespace teraio
