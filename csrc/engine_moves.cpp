// The engine's moves: what leaves memory and what comes back, asked for by an op or by the plan.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>

#include "clock.h"
#include "collectives.h"
#include "engine.h"
#include "errors.h"
#include "guard.h"

namespace teraio {
namespace {

constexpr size_t kVictimsKept = 256;
constexpr uint64_t kVictimsLast = 64;  // ops
constexpr auto kCollectivesAskedEvery = std::chrono::microseconds(200);
constexpr int64_t kCollectivesLastNs = 60'000'000'000;
constexpr size_t kWaitsSettledAtOnce = 1024;
constexpr auto kTurnLasts = std::chrono::seconds(1);

}  // namespace

// ---------------------------------------------------------------- waiting

void Engine::wait(Lock& lock, int32_t storage, bool memory, int64_t most_ns) {
  if (!done_.empty()) {  // what the caller waits for may be here already
    drain();
    return;
  }
  begin_wait();
  const int64_t begin = now_ns();
  const uint64_t seen = events_;
  ++waiters_;
  const auto changed = [&] { return events_ != seen || !done_.empty(); };
  if (most_ns < 0) {
    lock.wait(changed_, changed);
  } else {
    lock.wait_for(changed_, std::chrono::nanoseconds(most_ns), changed);
  }
  --waiters_;
  frame().waited = true;
  if (frame().training) note_stall(storage, memory, now_ns() - begin);
  drain();
  // What the plan fetches must not take the memory that the device's allocator lacks.
  if (!fetch_queue_.empty() && !frame().freeing) start_waiting_fetches(lock);
}

// [Note: taking turns]
// An op that needs much room would never find it while ops on other threads take what gets free, or want back what was
// about to leave for it. So an op that holds nothing yet lets those go first that wait already, and so do the plan's
// fetches. They may need what its thread holds in other ways (a lock of the program's own), so it doesn't wait for ever.
void Engine::let_others_have_room(Lock& lock) {
  Frame& f = frame();
  const bool holds = !f.pinned.empty() || f.apart || f.freeing || at::get_thread_num() > 0;
  if (short_of_room_ == 0 || holds) return;
  begin_wait();
  const int64_t begin = now_ns();
  const int self = f.entered ? 1 : 0;
  waiting_threads_ += self;
  notify();
  ++waiters_;
  lock.wait_for(changed_, kTurnLasts, [this] { return short_of_room_ == 0; });
  --waiters_;
  waiting_threads_ -= self;
  f.waited = true;
  if (f.training) note_stall(-1, true, now_ns() - begin);
}

void Engine::note_stall(int32_t storage, bool memory, int64_t ns) {
  const uint32_t op = schedule_ ? schedule_->position() : static_cast<uint32_t>(stats_.ops);
  Frame& f = frame();
  if (f.wait_begun) {
    f.stalls.push_back({op, storage, memory, ns});
  } else {
    count_stall({op, storage, memory, ns});
  }
}

void Engine::count_stall(const Stall& stall) {
  stats_.stall_ns += stall.ns;
  if (!stalls_.empty()) {
    Stall& last = stalls_.back();
    if (last.op == stall.op && last.storage == stall.storage && last.memory == stall.memory) {
      last.ns += stall.ns;
      return;
    }
  }
  stalls_.push_back(stall);
}

// What the running thread has waited so far.
int64_t Engine::noted_ns() const {
  const auto& stalls = frame().stalls;
  return std::accumulate(stalls.begin(), stalls.end(), stats_.stall_ns,
                         [](int64_t sum, const Stall& stall) { return sum + stall.ns; });
}

// [Note: stalls of a device]
// The host issues ops ahead of a device, so while it waits the device may be busy; and a stream may wait for a copy that
// the host has left behind. What counts is how long the device stands still: from the end of what was issued before the
// wait, to what is issued after it. Two events tell when the device has got there. It counts for what the host waited
// for meanwhile. Results that are made again within are work. What the device has not got to when an iteration ends for
// the host counts in the next one: to wait for it would keep the host from running ahead.
void Engine::begin_wait() {
  Frame& f = frame();
  if (f.stream && f.training && !f.wait_begun) f.wait_begun = accelerator_->event(*f.stream, true);
}

void Engine::end_wait() {
  Frame& f = frame();
  if (!f.wait_begun) return;
  std::optional<size_t> op;
  if (recording_ && f.began && !f.apart) op = recording_->ops.size();
  device_waits_.push_back({std::move(*f.wait_begun), accelerator_->event(*f.stream, true), std::move(f.stalls), op});
  f.wait_begun.reset();
  f.stalls.clear();
  if (device_waits_.size() % kWaitsSettledAtOnce == 0) settle_waits();  // the iteration may never end
}

// Those to whose end the device has come.
void Engine::settle_waits() {
  for (; !device_waits_.empty() && device_waits_.front().end.query(); device_waits_.pop_front()) {
    settle_wait(device_waits_.front(), op_times_);
  }
}

void Engine::settle_wait(DeviceWait& wait, std::vector<OpTime>& op_times) {
  const auto ns = std::max<int64_t>(0, static_cast<int64_t>(wait.begin.elapsedTime(wait.end) * 1e6));
  int64_t host_ns = 0;
  for (const Stall& stall : wait.stalls) host_ns += stall.ns;
  for (Stall& stall : wait.stalls) {
    const double share = host_ns > 0 ? static_cast<double>(stall.ns) / static_cast<double>(host_ns) : 0.0;
    stall.ns = static_cast<int64_t>(static_cast<double>(ns) * share);
    count_stall(stall);
  }
  // The first of these times is of the recording's begin.
  if (wait.op && *wait.op + 1 < op_times.size()) op_times[*wait.op + 1].waited_ns += ns;
}

void Engine::fetch_now(Block* block, Lock& lock) {
  const uint64_t id = block->id;
  bool told = false;
  for (int tries = 0; block->state != State::kResident;) {
    if (block->state == State::kLeaving) {
      stay(block);
      return;
    }
    if (forked_) throw SpillError("teraio: " + describe_elsewhere(block));
    if (block->state == State::kAway) {
      told = false;
      // A fetch ahead of time may have failed for a reason that is gone; one that was asked for now is not tried on.
      if (block->dropped()) {
        if (!block->recipe) throw SpillError(block->failure);  // it was lost as a run closed
        recompute(block, lock);
        if (find_block(id) == nullptr || block->dead) return;
        continue;
      }
      if (tries++ == 2) throw SpillError(block->failure);
      make_room(block->nbytes, lock, block->trace_index);
      if (find_block(id) == nullptr || block->dead) return;
      if (block->state == State::kAway && !start_coming(block, true, lock)) return;
      continue;
    }
    // What another thread makes again may need memory that this one's op pins, and a turn.
    std::optional<Surroundings::Scope::Pause> pause;
    if (block->recipe && block->transfer == nullptr) pause.emplace();
    const int held_up = frame().entered && pause ? 1 : 0;
    waiting_threads_ += held_up;
    // That thread may have counted on this op to end. It is told once: two that wait would wake each other for ever.
    if (held_up > 0 && !std::exchange(told, true)) notify();
    wait(lock, block->trace_index);
    if (pause) {
      lock.unlock();
      pause.reset();  // may have to wait for a turn
      lock.lock();
    }
    waiting_threads_ -= held_up;
    if (find_block(id) == nullptr || block->dead) return;
  }
}

// [Note: making room]
// An op that needs memory waits for exactly the bytes it lacks. What leaves already comes first; then the block
// used again last (by the plan, or by how long it has not been used) leaves as well. An error is raised only when
// nothing can leave, nothing is on its way, no other thread's op could end and unpin something, and neither could a
// collective. Kernels take memory on threads of a pool as well: the op that such a thread works for can't end before.
// An op of another thread may itself wait for this one: a custom op whose body joins a thread that runs ops. Nothing tells
// that, so ops of others are waited for as long as an op may take, and not for ever.
void Engine::make_room(uint64_t nbytes, Lock& lock, int32_t storage) {
  const uint64_t failures = write_failures_;
  const int self = frame().entered ? 1 : 0;
  const int employer = at::get_thread_num() > 0 ? 1 : 0;
  int64_t waiting_for_collectives_ns = 0, waiting_for_others_ns = 0;
  struct Wait {
    Engine& engine;
    bool begun = false;
    void begin() {
      if (!std::exchange(begun, true)) ++engine.short_of_room_;
    }
    ~Wait() {
      if (!begun) return;
      --engine.short_of_room_;
      engine.notify();
    }
  } short_of_room{*this};
  for (;;) {
    if (!done_.empty()) drain();
    lock.free_garbage();
    if (used() + nbytes <= budget_) return;
    if (write_failures_ != failures) throw SpillError(write_failure_);
    const uint64_t lacking = used() + nbytes - budget_;
    if (leaving_ < lacking) {
      if (Block* leaving = victim()) {
        start_leaving(leaving, true);
        continue;
      }
    }
    if (let_go(lacking, Part::kAny)) continue;
    const bool only_others = leaving_ < lacking && in_flight_ == 0;
    const bool none_ends = pinning_threads_ - waiting_threads_ - self - employer <= 0;
    if (!only_others) waiting_for_others_ns = 0;
    const bool long_enough = waiting_for_others_ns > patience_ns_;
    if (only_others && (none_ends || long_enough)) {
      if (wait_for_collective(lock, waiting_for_collectives_ns)) continue;
      if (looks_on(nbytes)) return;
      throw BudgetError(over_budget(nbytes) + (none_ends ? "" : describe_others()));
    }
    short_of_room.begin();
    waiting_threads_ += self;
    const int64_t begin = now_ns();
    wait(lock, storage, true, only_others ? patience_ns_ - waiting_for_others_ns + 1 : -1);
    if (only_others) waiting_for_others_ns += now_ns() - begin;
    waiting_threads_ -= self;
  }
}

std::string Engine::describe_others() const {
  return " Ops of other threads hold memory too, and did not end for " + std::to_string(patience_ns_ / 1'000'000'000) +
         " s. One that waits for a thread that runs ops must find room for itself and these.";
}

// [Note: leaving in the device's order]
// A copy to host memory is issued when its storage begins to leave. All that a stream runs after it was told to wait for
// that copy may use the memory, so the host need not wait: it tells the stream, gives the memory back, and goes on
// issuing ops while the device does what was issued before. A host that waited would leave the device without work
// each time, and then be slower to issue ops than the device is to run them. The same goes for what a plan fetches into
// memory that has left by then: the host, far ahead, would see it leave too late.
// True if something went: what makes up for so many bytes, or as much of it as there is.
bool Engine::let_go(uint64_t nbytes, Part part) {
  std::vector<Block*> going, lost;
  uint64_t left = nbytes;
  for (auto it = leaving_to_host_.begin(); it != leaving_to_host_.end() && left > 0; ++it) {
    if (owner(*it) == nullptr) {
      lost.push_back(*it);
    } else if ((*it)->pins == 0) {
      going.push_back(*it);
      left -= std::min(left, static_cast<uint64_t>((*it)->nbytes));
    }
  }
  for (Block* block : lost) stay(block);  // its memory has gone to another storage
  if (going.empty() || (part == Part::kWhole && left > 0)) return !lost.empty();
  if (!std::all_of(going.begin(), going.end(), [this](const Block* block) { return is_over(block->copied); })) {
    Frame& f = frame();
    begin_wait();
    f.waited = true;
    if (f.training) note_stall(-1, true, 1);  // the device tells how long it is
  }
  for (Block* block : going) has_left(block);
  notify();
  return true;
}

// [Note: looking on]
// What the first op lacks that does not fit the budget says little of what a later one will need. So while a run is
// profiled and the machine has the memory, such an op gets what it lacks and no more, and at the end of the iteration
// the run fails with the largest of these needs. A program whose iterations don't end fails all the same, after a while.
bool Engine::looks_on(uint64_t nbytes) {
  const uint64_t needed = needed_for(nbytes);
  // Beyond the budget, what is taken outside of ops (numbers become tensors there) is no news.
  if ((frame().depth == 0 && needed_ == 0) || needed > budget_ + beyond_) return false;
  if (needed_ == 0) looking_since_ns_ = now_ns();
  if (now_ns() - looking_since_ns_ > look_on_ns_) return false;
  if (needed > needed_) {
    needed_ = needed;
    stats_.over_budget = over_budget(nbytes, true);
  }
  return true;
}

// Until one has let go of what it uses. False if none is under way, or the op has waited long enough for them: they may be
// waiting for what this process would send later. `begun_ns`: since when it has, 0 if it hasn't yet.
bool Engine::wait_for_collective(Lock& lock, int64_t& begun_ns) {
  begin_wait();
  const int64_t begin = now_ns();
  if (begun_ns == 0) begun_ns = begin;
  const uint64_t seen = events_;
  while (collectives::any() && events_ == seen && now_ns() - begun_ns < kCollectivesLastNs) {
    lock.unlock();
    collectives::release_done(true);
    std::this_thread::sleep_for(kCollectivesAskedEvery);
    lock.lock();
  }
  if (events_ == seen) return false;
  if (frame().training) note_stall(-1, true, now_ns() - begin);
  return true;
}

// What the plan knows of the op that begins, or else the most there has been, see [Note: what ops need].
uint64_t Engine::need_of(const Frame& f) const {
  if (f.taking > 0) return f.taking;
  if (f.apart) return std::max(f.apart_need, f.results);
  if (schedule_ && schedule_->expects(f.name)) {
    // Operands that are larger than planned (another batch, tokens that a mixture of experts sends elsewhere) make
    // results that are larger as well.
    double growth = 1;
    for (const auto& pinned : f.pinned) {
      const Block* block = pinned.block;
      if (block->trace_index < 0) continue;
      growth = std::max(growth, static_cast<double>(block->nbytes) / static_cast<double>(planned_bytes(block)));
    }
    uint64_t need = schedule_->need();
    if (growth > 1) need = std::min(static_cast<uint64_t>(growth * static_cast<double>(need)), budget_ / 2);
    return std::max(need, f.results);
  }
  // A view of its operands makes nothing; what it calls may, and that is asked itself.
  if (f.pinned.empty() && f.results == 0) return 0;
  uint64_t operands = 0;
  for (const auto& pinned : f.pinned) operands += pinned.block->nbytes;
  return std::max(std::min(std::max(headroom_.load(), operands), budget_ / 2), f.results);
}

void Engine::make_room_if_possible(uint64_t nbytes, Lock& lock) {
  try {
    make_room(nbytes, lock);
  } catch (const torch::PyTorchError&) {
    return;
  }
}

// From [Note: out of memory]: sends so much away by our own threads, and waits for it. False when nothing could leave.
bool Engine::leave_natively(uint64_t nbytes, Lock& lock) {
  bool any = false;
  uint64_t left = nbytes;
  // What is leaving already and waits for Python goes without it.
  for (size_t i = 0; i < blocks_.size() && left > 0 && spill_->needs_python(); ++i) {
    Block* block = blocks_[i];
    if (block->state != State::kLeaving || block->transfer == nullptr || block->transfer->natively) continue;
    if (!spill_->take_from_python(block->transfer)) continue;
    any = true;
    leaving_natively_ += block->nbytes;
    left -= std::min(left, static_cast<uint64_t>(block->nbytes));
  }
  while (left > 0) {
    Block* block = victim();
    if (block == nullptr) break;
    any = true;
    left -= std::min(left, static_cast<uint64_t>(block->nbytes));
    start_leaving(block, true, std::nullopt, true);
  }
  let_go(leaving_, Part::kAny);
  while (leaving_natively_ > 0) wait(lock, -1, true);
  lock.free_garbage();
  return any;
}

bool Engine::can_leave(const Block* block) const {
  if (closing_) return false;  // it may be back for good
  if (block->lent_iteration == iteration_) return false;  // nothing tells when they are done with the address
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
      Block* block = find_block(victim.block);
      if (block != nullptr && block->last_use == victim.last_use && can_leave(block)) return block;
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

// ---------------------------------------------------------------- transfers

void Engine::start_leaving(Block* block, bool urgent, std::optional<Slot> planned, bool natively) {
  if (drop(block)) return;
  if (block->transfer != nullptr) {  // its copy is still being written, and nothing has changed it since
    if (urgent) spill_->promote(block->transfer);
    leave(block);
    return;
  }
  if (!block->clean()) {
    start_copying(block, urgent, planned, natively);
  } else if (block->tier == TierKind::kSpill || is_over(block->copied)) {
    detach(block);
    return;
  }
  leave(block);
}

// The block stays as it is meanwhile. If it changes, the copy is none.
void Engine::start_copying(Block* block, bool urgent, std::optional<Slot> planned, bool natively) {
  drop_extent(block);
  find_extent(block, planned);
  std::vector<c10::Event> after;
  if (block->device) {
    if (block->device->streams.empty()) use_on(block, block->device->home);  // what came may not have arrived yet
    for (const c10::Stream& stream : block->device->streams) after.push_back(accelerator_->event(stream));
  }
  if (block->tier == TierKind::kHost) {
    copy_to_host(block, after);
    return;
  }
  auto transfer = transfer_of(block, Transfer::Direction::kWrite);
  transfer->natively = natively;
  if (!natively) transfer->encoding = encoding_of(block);
  transfer->after = std::move(after);
  submit(block, std::move(transfer), urgent);
}

// Whatever is issued later finds it copied.
void Engine::copy_to_host(Block* block, const std::vector<c10::Event>& after) {
  try {
    block->copied = host_->write(block->memory, block->data_bytes, *block->extent, after);
  } catch (const c10::Error& error) {
    drop_extent(block);
    write_failure_ = "copying " + describe(block) + " to host memory failed: " + error.what_without_backtrace();
    ++write_failures_;
    throw SpillError(write_failure_);
  }
  block->copied_version = block->version;
  stats_.written_bytes += block->nbytes;
}

void Engine::leave(Block* block) {
  block->state = State::kLeaving;
  leaving_ += block->nbytes;
  if (block->transfer == nullptr) {
    leaving_to_host_.push_back(block);
  } else if (block->transfer->natively) {
    leaving_natively_ += block->nbytes;
  }
}

// What was leaving stays; its copy completes all the same.
void Engine::stay(Block* block) {
  block->state = State::kResident;
  leaving_ -= block->nbytes;
  if (block->transfer == nullptr) {
    leaving_to_host_.erase(std::find(leaving_to_host_.begin(), leaving_to_host_.end(), block));
  } else if (block->transfer->natively) {
    leaving_natively_ -= block->nbytes;
  }
}

// Where the plan says, else in host memory while there is room, else in the spill space. Throws SpillError.
void Engine::find_extent(Block* block, std::optional<Slot> planned) {
  if (planned) {
    const Extent extent{planned->offset, block->nbytes};
    drop_spare_copies(planned->tier, extent);
    if (allocate_at(planned->tier, extent)) return own(block, planned->tier, extent);
  }
  if (host_) {
    if (const auto extent = host_->allocate(block->nbytes)) return own(block, TierKind::kHost, *extent);
  }
  own(block, TierKind::kSpill, spill_->allocate(block->nbytes));
}

bool Engine::allocate_at(TierKind tier, const Extent& extent) {
  return tier == TierKind::kSpill ? spill_->allocate_at(extent) : host_ && host_->allocate_at(extent);
}

void Engine::own(Block* block, TierKind tier, const Extent& extent) {
  block->extent = extent;
  block->tier = tier;
  copies_of(tier)[extent.offset] = block;
}

// A copy outlasts the moves that the plan has it for, until its data changes. Where the plan has another one in its
// place by then, it goes, as the data is in memory too; but not in vain, where others in that place are needed.
void Engine::drop_spare_copies(TierKind tier, const Extent& extent) {
  auto& copies = copies_of(tier);
  auto it = copies.upper_bound(extent.offset);
  if (it != copies.begin()) --it;
  std::vector<Block*> spare;
  for (; it != copies.end() && it->first < extent.offset + extent.nbytes; ++it) {
    Block* owner = it->second;
    if (owner->extent->offset + owner->extent->nbytes <= extent.offset) continue;
    if (owner->state != State::kResident || owner->transfer != nullptr) return;
    spare.push_back(owner);
  }
  for (Block* owner : spare) drop_extent(owner);
}

bool Engine::start_coming(Block* block, bool urgent, Lock& lock) {
  if (accelerator_ == nullptr) {
    take_memory(block);
    block->state = State::kComing;
    submit(block, transfer_of(block, Transfer::Direction::kRead), urgent);
    return true;
  }
  block->state = State::kComing;
  ++block->pins;  // so that it stays what it is while the mutex is given up
  const auto go_on = [&] {
    const bool lives = !block->dead;
    if (--block->pins == 0 && block->dead) bury(block);
    notify();
    return lives;
  };
  try {
    take_device_memory(block, lock);
    if (block->dead) return go_on();
    c10::Event before = accelerator_->event(block->device->home);
    if (block->tier == TierKind::kSpill) {
      auto transfer = transfer_of(block, Transfer::Direction::kRead);
      transfer->after.push_back(std::move(before));
      submit(block, std::move(transfer), urgent);
    } else {
      block->ready = host_->read(block->memory, block->data_bytes, *block->extent, before, block->copied);
      arrived(block, block->nbytes);
    }
  } catch (const c10::Error& error) {
    if (block->memory != nullptr) give_memory(block);
    block->state = State::kAway;
    const std::string description = describe(block);
    go_on();
    throw BudgetError("the device gave no memory for " + description + ": " + error.what_without_backtrace());
  }
  return go_on();
}

std::unique_ptr<Transfer> Engine::transfer_of(Block* block, Transfer::Direction direction) {
  auto transfer = std::make_unique<Transfer>();
  transfer->direction = direction;
  transfer->memory = block->memory;
  transfer->nbytes = block->data_bytes;
  if (accelerator_ != nullptr) transfer->device = accelerator_->device();
  transfer->extent = *block->extent;
  if (direction == Transfer::Direction::kRead) transfer->encoding = block->encoding;
  transfer->user = block;
  return transfer;
}

// How a storage is written to the spill space: by the plan's codec for it, or the default. Values behind the storage's
// end would be none.
std::optional<Encoding> Engine::encoding_of(Block* block) const {
  const bool planned = schedule_ && block->trace_index >= 0;
  const CodecNumber codec = planned ? schedule_->codecs[static_cast<size_t>(block->trace_index)] : default_codec_;
  const c10::ScalarType dtype = block->dtype;
  const c10::StorageImpl* storage = owner(block);
  if (codec == 0 || storage == nullptr || !c10::isFloatingType(dtype)) return std::nullopt;
  const size_t nbytes = std::min(block->data_bytes, storage->nbytes());
  if (nbytes % c10::elementSize(dtype) != 0) return std::nullopt;
  return Encoding{codec, dtype, nbytes, {}};
}

void Engine::submit(Block* block, std::unique_ptr<Transfer> transfer, bool urgent) {
  block->transfer = transfer.get();
  block->transfer_version = block->version;
  ++in_flight_;
  spill_->submit(transfer.release(), urgent);
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
  notify();
}

void Engine::finish(Transfer* done) {
  const std::unique_ptr<Transfer> transfer(done);
  Block* block = static_cast<Block*>(transfer->user);
  const bool write = transfer->direction == Transfer::Direction::kWrite;
  if (!write && transfer->error == 0 && transfer->checksum != block->checksum) {
    transfer->error = EBADMSG;
    transfer->error_offset = transfer->extent.offset;
    transfer->error_path = spill_->folders_of(transfer.get());
  }
  const int error = transfer->error;
  const uint64_t moved = transfer->moved;
  const bool leaving = write && block->state == State::kLeaving;
  if (leaving) stay(block);
  if (write) block->checksum = transfer->checksum;
  block->transfer = nullptr;
  --in_flight_;
  if (error != 0) block->failure = describe_failure(block, *transfer);
  if (write) {
    if (error == 0) stats_.written_bytes += moved;
    if (error != 0) {
      write_failure_ = block->failure;
      ++write_failures_;
      drop_extent(block);
    } else if (block->transfer_version == block->version && !block->dead) {
      block->copied_version = block->version;
      block->encoding = std::move(transfer->encoding);
      if (leaving && block->pins == 0) detach(block);
    } else {
      drop_extent(block);
    }
  } else if (error != 0) {
    give_memory(block);
    block->state = State::kAway;
  } else {
    arrived(block, moved);
  }
  if (block->dead) {
    if (block->memory != nullptr) give_memory(block);
    bury(block);
  }
}

void Engine::arrived(Block* block, uint64_t moved) {
  stats_.read_bytes += moved;
  block->state = State::kResident;
  if (c10::StorageImpl* storage = owner(block)) {
    guard::set_message(*storage, describe_guard(block));
    if (block->pins > 0) guard::open(*storage, block->memory);
  }
}

void Engine::detach(Block* block) {
  c10::StorageImpl* storage = owner(block);
  if (storage == nullptr) return;
  guard::close_empty(*storage);
  give_memory(block);
  block->state = State::kAway;
}

// A copy has been made of what was leaving.
void Engine::has_left(Block* block) {
  stay(block);
  detach(block);
}

void Engine::start_waiting_fetches(Lock& lock) {
  // A codec that lacks memory of the device comes here; what an I/O thread takes would belong to its stream.
  if (SpillSpace::on_io_thread() || short_of_room_ > 0) return;
  while (!fetch_queue_.empty()) {
    const uint64_t id = fetch_queue_.front();
    Block* block = find_block(id);
    if (block != nullptr && block->state == State::kLeaving) stay(block);  // nothing has needed its memory
    const bool comes = block != nullptr && block->state == State::kAway && !block->dropped() && !block->dead;
    if (comes && used() + block->nbytes > budget_) {
      if (garbage_.empty() && !let_go(used() + block->nbytes - budget_, Part::kWhole)) return;
      lock.free_garbage();
      continue;
    }
    fetch_queue_.pop_front();
    if (comes && !start_prefetch(block, lock)) return;
  }
}

// False if there is no memory for it. Nobody waits for it yet; it comes when an op asks for it.
bool Engine::start_prefetch(Block* block, Lock& lock) {
  // Other threads may count on it: while the device's allocator looks for memory it is not yet in flight.
  Frame& f = frame();
  const bool enters = !std::exchange(f.entered, true);
  if (enters) ++pinning_threads_;
  bool comes = true;
  try {
    start_coming(block, false, lock);
  } catch (const BudgetError&) {
    comes = false;
  } catch (const std::bad_alloc&) {
    comes = false;
  }
  if (enters) {
    f.entered = false;
    --pinning_threads_;
    if (!comes) notify();
  }
  return comes;
}

void Engine::run_due_actions() {
  for (int64_t at = schedule_->due(); at >= 0; at = schedule_->due()) {
    const auto op = static_cast<size_t>(at);
    for (uint32_t i = schedule_->action_offsets[op]; i < schedule_->action_offsets[op + 1]; ++i) {
      const Schedule::Action action = schedule_->actions[i];
      Block* block = bound_[static_cast<size_t>(action.storage)];
      if (block == nullptr) continue;
      if (action.kind == Schedule::ActionKind::kFetch) {
        if (block->state == State::kAway || block->state == State::kLeaving) fetch_queue_.push_back(block->id);
      } else if (can_leave(block) && block->published_iteration != iteration_) {
        try {
          std::optional<Slot> planned;
          if (action.extent >= 0) planned = Slot{action.tier, static_cast<uint64_t>(action.extent)};
          if (action.kind == Schedule::ActionKind::kLeave) {
            start_leaving(block, false, planned);
          } else if (block->transfer == nullptr && !block->clean()) {
            start_copying(block, false, planned);
          }
        } catch (const SpillError&) {
          // Nothing is lost: the data stays, and an op that lacks the memory raises the cause.
        }
      }
    }
  }
}

}  // namespace teraio
