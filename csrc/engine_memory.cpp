// The engine's memory: blocks come and go, and with them the bytes that count against the budget.
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "clock.h"
#include "engine.h"
#include "errors.h"
#include "gil.h"
#include "guard.h"

namespace teraio {
namespace {

// What CUDA's allocator takes of the device for requests between 1 and 10 MiB, which share it.
constexpr uint64_t kSharedSegment = uint64_t{20} << 20;

template <class Value>
void raise_to(std::atomic<Value>& most, Value value) {
  Value known = most.load();
  while (value > known && !most.compare_exchange_weak(known, value)) {
  }
}

// Bytes of blocks that the op has made, or that it was the first to have.
int64_t born_bytes(const Frame& f) {
  int64_t nbytes = 0;
  for (const auto& pinned : f.pinned) {
    if (pinned.born && !pinned.block->dead) nbytes += static_cast<int64_t>(pinned.block->nbytes);
  }
  return nbytes;
}

}  // namespace

void Engine::raise_if_failed(const Frame& f) {
  if (f.error.empty()) return;
  if (f.over_budget) throw BudgetError(f.error);
  throw SpillError(f.error);
}

// ---------------------------------------------------------------- new blocks

Block* Engine::allocate(size_t nbytes, bool pin_to_frame) {
  Frame& f = frame();
  raise_if_failed(f);
  auto block = std::make_unique<Block>();
  block->nbytes = block->data_bytes = round_up(nbytes, kPage);
  GilRelease gil(std::defer_lock);
  Lock lock(*this);
  if (active() && !forked_ && used() + block->nbytes > budget_) {
    lock.release_gil(gil);
    let_others_have_room(lock);
    make_room(block->nbytes, lock);
  }
  take_memory(block.get());
  enroll(block.get(), f, pin_to_frame);
  return block.release();
}

Block* Engine::allocate_without_memory(size_t nbytes) {
  auto block = std::make_unique<Block>();
  block->nbytes = block->data_bytes = round_up(nbytes, kPage);
  block->exempt = true;
  const Lock lock(*this);
  enroll(block.get(), frame(), true);
  return block.release();
}

Block* Engine::take_over(at::DataPtr memory, c10::StorageImpl* storage) {
  Frame& f = frame();
  const c10::Stream stream = accelerator_->stream();
  auto block = std::make_unique<Block>();
  block->data_bytes = storage->nbytes();
  block->nbytes = round_up(block->data_bytes, kPage);
  block->memory = static_cast<char*>(memory.get());
  block->device = DeviceMemory{std::move(memory), stream, {stream}};
  block->first_stream = stream;
  const Lock lock(*this);
  // The allocator counts it already; now it counts as a block.
  used_ += block->nbytes;
  note_peak();
  beside_ -= static_cast<int64_t>(block->nbytes);
  link(block.get(), storage);
  enroll(block.get(), f, true);
  return block.release();
}

void Engine::enroll(Block* block, Frame& f, bool pin_to_frame) {
  block->id = next_block_++;
  place_of_block_[block->id] = blocks_.size();
  blocks_.push_back(block);
  if (pin_to_frame && f.depth > 0) enter(f);
  logical_ += static_cast<int64_t>(block->nbytes);
  if (!f.apart) logical_peak_ = std::max(logical_peak_, logical_);  // what is made again counts already
  block->last_use = op_counter_;
  if (pin_to_frame && (f.depth > 0 || (f.training && watching_))) {
    f.logical_peak = std::max(f.logical_peak, logical_);
    f.largest = std::max(f.largest, static_cast<uint64_t>(block->nbytes));
    f.pinned.push_back({block, true, true});
    block->frame = &f;
    block->pins = 1;
  }
}

Block* Engine::find_block(uint64_t id) const {
  const auto found = place_of_block_.find(id);
  return found == place_of_block_.end() ? nullptr : blocks_[found->second];
}

void Engine::small_allocated(size_t nbytes) {
  raise_if_failed(frame());
  const int64_t small = small_ += static_cast<int64_t>(nbytes);
  if (!active() || forked_) return;
  raise_to(small_peak_, small);
  if (const uint64_t now = used(); now <= budget_) {
    raise_to(peak_, now);
    return;
  }
  const GilRelease gil;
  Lock lock(*this);
  let_others_have_room(lock);
  try {
    make_room(0, lock);
  } catch (...) {
    small_ -= static_cast<int64_t>(nbytes);
    throw;
  }
  note_peak();
}

// ---------------------------------------------------------------- blocks that go

void Engine::storage_died(Block* block) {
  const Lock lock(*this);
  block->dead = true;
  if (block->state == State::kLeaving && block->transfer == nullptr) stay(block);
  block->storage.reset();
  logical_ -= static_cast<int64_t>(block->nbytes);
  discard_recipe(block);
  unbind(block);
  if (recording_) {
    const auto op = static_cast<int64_t>(recording_->ops.size());
    recording_->deaths.push_back({block->id, frame().depth > 0 ? op : op - 1});
  }
  if (block->transfer == nullptr) {
    if (block->memory != nullptr) give_memory(block);
    bury(block);
  }
  notify();
}

void Engine::bury(Block* block) {
  if (block->pins > 0 || block->transfer != nullptr) return;
  if (block->memory != nullptr) give_memory(block);
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

void Engine::drop_extent(Block* block) {
  if (!block->extent || block->transfer != nullptr) return;
  copies_of(block->tier).erase(block->extent->offset);
  if (block->tier == TierKind::kSpill) {
    if (spill_) spill_->free(*block->extent);
  } else if (host_) {
    try {
      host_->free(*block->extent, !is_over(block->ready));
    } catch (const c10::Error&) {
      // The device is broken, and the program's next op will say so.
    }
  }
  block->extent.reset();
  block->encoding.reset();
  block->copied_version = 0;
}

// ---------------------------------------------------------------- memory

// How many bytes the pool may grow by, so that sizes needed at different times have pages of their own: within the
// budget, and to a quarter more than was ever in use at once.
uint64_t Engine::room_for_new_pages() const {
  if (closing_) return 0;  // nothing will come again
  const uint64_t enough = std::min<uint64_t>(budget_, most_used_ + most_used_ / 4);
  const uint64_t held = used() + pages_.cached();
  return enough > held ? enough - held : 0;
}

// Of the CPU.
void Engine::take_memory(Block* block) {
  char* memory = block->address;
  most_used_ = std::max(most_used_, used() + block->nbytes);
  if (memory != nullptr) {
    if (::mprotect(memory, block->nbytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  } else {
    memory = static_cast<char*>(pages_.take(block->nbytes, room_for_new_pages()));
  }
  if (poison_) std::memset(memory, 0xFF, block->nbytes);
  block->memory = memory;
  used_ += block->nbytes;
  note_peak();
  // Pages kept for reuse are memory too: together with what is in use they stay within the budget.
  const uint64_t room = budget_ > used() ? budget_ - used() : 0;
  if (pages_.cached() > room) pages_.trim(pages_.cached() - room);
}

// Gives the mutex up meanwhile; the caller has pinned the block, so that it stays.
void Engine::take_device_memory(Block* block, Lock& lock) {
  used_ += block->nbytes;
  note_peak();
  lock.unlock();
  uint64_t& taking = frame().taking;
  taking = block->nbytes;
  std::optional<DeviceMemory> memory;
  try {
    const c10::Stream stream = accelerator_->stream();
    memory = DeviceMemory{accelerator_->allocate(block->nbytes), stream, {}};
    if (poison_) accelerator_->poison(static_cast<char*>(memory->owner.get()), block->nbytes, stream);
  } catch (...) {
    taking = 0;
    lock.lock();
    used_ -= block->nbytes;
    throw;
  }
  taking = 0;
  lock.lock();
  block->memory = static_cast<char*>(memory->owner.get());
  block->device = std::move(memory);
}

void Engine::give_memory(Block* block) {
  if (block->device) {
    let_wait(block->device->home, block->ready);  // it may have come for nothing
    if (!block->dead) {
      let_wait(block->device->home, block->copied);
    } else if (host_ && !is_over(block->copied)) {
      block->device->streams.push_back(host_->out());  // nobody waits for a copy of what is no more
    }
    garbage_.push_back({std::move(*block->device), block->nbytes, block->data_bytes});
    block->device.reset();
    block->memory = nullptr;
    return;
  }
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

// Deleters of storages come to these two, where nothing may be thrown, and in forked children too, where the device can't
// be asked. If it is broken, the program's next op will say so.
bool Engine::is_over(const std::optional<c10::Event>& event) const {
  if (!event || forked_) return true;
  try {
    return event->query();
  } catch (const c10::Error&) {
    return true;
  }
}

void Engine::let_wait(const c10::Stream& stream, const std::optional<c10::Event>& event) const {
  if (!event || forked_) return;
  try {
    event->block(stream);
  } catch (const c10::Error&) {
  }
}

void Engine::Lock::unlock() {
  std::vector<Garbage> garbage;
  garbage.swap(engine_.garbage_);
  std::vector<std::shared_ptr<const Recipe>> recipes;
  recipes.swap(engine_.old_recipes_);
  lock_.unlock();
  recipes.clear();
  if (!garbage.empty()) engine_.free_garbage(std::move(garbage));
}

void Engine::Lock::release_gil(GilRelease& gil) {
  unlock();
  gil.release();
  lock();
}

void Engine::free_garbage(std::vector<Garbage> garbage) noexcept {
  uint64_t nbytes = 0;
  for (Garbage& item : garbage) {
    DeviceMemory& memory = item.memory;
    const auto elsewhere = [&](const c10::Stream& stream) { return stream != memory.home; };
    const bool several = std::any_of(memory.streams.begin(), memory.streams.end(), elsewhere);
    try {
      // The deleter asks the device of several streams, and may not throw.
      if (several && forked_) throw SpillError("a forked process has no device");
      if (several) accelerator_->event(memory.home);
      // Home too: what the program took itself may be of another stream. For its own stream the allocator does nothing.
      for (const c10::Stream& stream : memory.streams) {
        accelerator_->keep_until_done(memory.owner, stream);
        if (poison_) accelerator_->event(stream).block(memory.home);
      }
      if (poison_) accelerator_->poison(static_cast<char*>(memory.owner.get()), item.data_bytes, memory.home);
      memory.owner.clear();
    } catch (...) {
      // A process that was forked off has no device. If it is broken, the program's next op will say so.
      memory.owner.release_context();
    }
    nbytes += item.nbytes;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  used_ -= nbytes;
  notify();
}

void Engine::release_free_pages(uint64_t nbytes) {
  const GilRelease gil;
  {
    Lock lock(*this);
    make_room_if_possible(nbytes, lock);
    pages_.trim(pages_.cached());
  }
  ::malloc_trim(0);
}

void Engine::notify() {
  ++events_;
  if (waiters_ > 0) changed_.notify_all();
}

void Engine::note_peak() { raise_to(peak_, used()); }

// ---------------------------------------------------------------- a device's memory

// [Note: what ops need]
// An op's results and temporaries on a device come from PyTorch's allocator, without asking us. So room is made
// before the op: as much as the plan knows of it, if its operands are what the plan knows, or else what its results will
// take and the most that any op has needed so far, for what leaves takes time. If an op needs more, the allocator calls
// free_memory(), but it doesn't say how much it lacks: so what an op makes has to be known before. What it needs is
// measured from when its operands are there and there is room.
void Engine::look_at_device(Frame& f) {
  const int64_t allocated = accelerator_->allocated().current;
  beside_ = allocated - static_cast<int64_t>(used_.load());
  if (f.depth > 1) return;
  f.stream = accelerator_->stream();
  f.beside_before = beside_;
}

// What was brought in for the op, or left for it, is none of its own needs.
void Engine::begin_measuring(Frame& f) {
  bool several_streams = false;
  {
    const Lock lock(*this);
    f.used_before = static_cast<int64_t>(used_.load());
    f.born_before = born_bytes(f);
    if (!first_stream_) first_stream_ = f.stream;
    several_streams = first_stream_ != f.stream && !guard::quiet();
  }
  // Autograd tells the allocator of gradients that go from one stream to another, by their pointers.
  if (several_streams) guard_quietly();
  f.peak = 0;
  if (measuring_) accelerator_->reset_peak();
}

bool Engine::foresees(const Frame& f, const std::vector<Operand>& operands) {
  if (!active() || forked_) return true;
  const Lock lock(*this);
  if (!expects_moves_ || f.apart) return true;
  return schedule_ && schedule_->expects(f.name) &&
         std::all_of(operands.begin(), operands.end(), [this](const Operand& operand) {
           const Block* block = operand.block;
           return block->trace_index >= 0 && block->nbytes <= planned_bytes(block);
         });
}

// At the end of an op, before the mutex is taken.
void Engine::note_need(Frame& f) {
  if (!measuring_) return;
  // Where other storages left meanwhile, the allocator's peak hides as much of the op's. The blocks that it had at once
  // are known all the same.
  const int64_t blocks = f.logical_peak - f.logical_begin;
  const int64_t peak = std::max(accelerator_->allocated().peak, f.peak);
  f.most = std::max(peak - f.beside_before - f.used_before, blocks);
  raise_to(headroom_, static_cast<uint64_t>(std::max<int64_t>(f.most, 0)));
  // Where it took more than blocks, all of it may have been one piece.
  const uint64_t piece = f.most > blocks ? static_cast<uint64_t>(f.most) : f.largest;
  const Lock lock(*this);
  if (pieces_.size() <= f.name) pieces_.resize(f.name + 1);
  pieces_[f.name] = std::max(pieces_[f.name], piece);
}

// [Note: out of memory]
// Called by the device's allocator, which holds its lock, when it has no free memory that fits; how much it needs it
// doesn't say. Nothing may be waited for here that may need Python's lock, because another thread may hold that and
// wait for the allocator: what leaves from here is written by our own threads. Memory that is free in pieces too
// small is of no use, so it is tried whether there are pieces that fit, until there are or nothing can leave. Such a
// try takes CUDA's allocator milliseconds if it fails; so all this is a stall, and each time more leaves.
bool Engine::free_memory() {
  Frame& f = frame();
  // Once it is installed it is called for good, and for all devices.
  if (!active() || forked_ || f.freeing || accelerator_ == nullptr || !accelerator_->is_current()) return false;
  f.freeing = true;
  bool freed = false;
  try {
    if (measuring_) f.peak = std::max(f.peak, accelerator_->allocated().peak);
    Lock lock(*this);
    begin_wait();
    const int64_t begin = now_ns(), noted = noted_ns();
    freed = find_pieces(f, lock);
    if (f.training) note_stall(-1, true, now_ns() - begin - (noted_ns() - noted));
    end_wait();
    if (measuring_) accelerator_->reset_peak();  // what was tried is no need of the op
  } catch (const std::exception& error) {
    // What the allocator raises then says nothing of it.
    TORCH_WARN("teraio could not move anything out of the device's memory: ", error.what());
  }
  f.freeing = false;
  return freed;
}

bool Engine::find_pieces(const Frame& f, Lock& lock) {
  const auto allocated = accelerator_->allocated();
  beside_ = allocated.current - static_cast<int64_t>(used_.load());
  uint64_t need = need_of(f);
  if (f.taking == 0 && f.stream) {  // a part of it the op has taken already
    const int64_t difference = beside_ - f.beside_before + born_bytes(f) - f.born_before;
    const auto taken = static_cast<uint64_t>(std::max<int64_t>(0, difference));
    // If it takes more than anybody knew, that may be as much as any op has needed.
    if (taken < need && !f.unforeseen && f.name < pieces_.size() && pieces_[f.name] > 0) {
      need = std::min(need - taken, pieces_[f.name]);  // it takes the rest in several
    } else {
      need = std::max(taken < need ? need - taken : std::min(headroom_.load(), budget_ / 2), f.results);
    }
  }
  need = round_up(std::max(need, uint64_t{kHugePage}), kHugePage);
  if (static_cast<uint64_t>(allocated.reserved) + need + kSharedSegment <= limit_) return false;
  drain();
  bool gone = let_go(need, Part::kAny) || !garbage_.empty();
  lock.free_garbage();
  const uint64_t wanted = used() + need;
  uint64_t lacking = std::max(wanted - std::min(wanted, budget_.load()), need / 4);
  const uint64_t failures = write_failures_;
  for (uint64_t more = need / 4; !has_pieces(need, lock); lacking = more, more *= 2) {
    if (write_failures_ != failures) throw SpillError(write_failure_);
    if (leave_natively(lacking, lock)) {
      gone = true;
    } else if (in_flight_ > 0 && !spill_->needs_python()) {
      wait(lock, -1, true);  // what is on its way may leave, or will have left, then
    } else {
      return gone;  // the op may want it in several pieces
    }
  }
  return true;
}

bool Engine::has_pieces(uint64_t nbytes, Lock& lock) const {
  lock.unlock();
  const bool has = accelerator_->can_allocate_up_to(nbytes);
  lock.lock();
  return has;
}

}  // namespace teraio
