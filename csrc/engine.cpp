#include "engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "clock.h"
#include "errors.h"
#include "gil.h"
#include "guard.h"
#include "sizes.h"

namespace teraio {
namespace {

constexpr size_t kStallsKept = 32;
// A budget that an error names is above what was lacking by this part of it: small allocations differ each time.
constexpr uint64_t kSlackShare = 16;

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

// ---------------------------------------------------------------- life

void Engine::start(std::unique_ptr<SpillSpace> spill, std::unique_ptr<HostTier> host, const Accelerator* accelerator,
                   uint64_t budget, uint64_t limit, uint64_t min_block) {
  const GilRelease gil;
  if (accelerator != nullptr) accelerator->synchronize();  // streams that nobody has watched may still write
  Lock lock(*this);
  spill_ = std::move(spill);
  host_ = std::move(host);
  accelerator_ = accelerator;
  budget_ = budget;
  limit_ = limit;
  min_block_ = min_block;
  active_ = expects_moves_ = true;
  guard::be_quiet(false);
  closing_ = false;
  beyond_ = needed_ = 0;
  headroom_ = 0;
  first_stream_.reset();
  pieces_.clear();
  mode_changed();
  // States of optimizers, above all: no op uses them before the first step.
  for (Block* block : blocks_) {
    if (c10::StorageImpl* storage = block->was_guarded ? owner(block) : nullptr) shut(block, storage);
  }
  make_room_if_possible(0, lock);
  most_used_ = used();
  begin_iteration_locked();
}

void Engine::bring_back() {
  const GilRelease gil;
  if (accelerator_ != nullptr && active()) {
    // Results are made again on this thread's stream, from what other streams may still be computing.
    try {
      accelerator_->synchronize();
    } catch (const c10::Error&) {
      // The device is broken, and the program's next op will say so.
    }
  }
  Lock lock(*this);
  if (!active_) return;
  closing_ = true;
  budget_ = limit_ = ~uint64_t{0};
  unfollow_locked();
  recording_.reset();
  device_waits_.clear();
  mode_changed();
  std::vector<uint64_t> ids;  // storages die during the waits, and others take their places among the blocks
  for (const Block* block : blocks_) ids.push_back(block->id);
  for (const uint64_t id : ids) {
    Block* block = find_block(id);
    if (block == nullptr) continue;
    const std::string description = describe(block);
    try {
      fetch_now(block, lock);
    } catch (const SpillError& error) {
      failure_ = error.msg;
    } catch (const BudgetError& error) {
      failure_ = error.msg;
    } catch (const std::exception& error) {  // of memory that the system lacks, or of an op that is run again
      failure_ = "bringing back " + description + " failed: " + error.what();
    }
  }
  while (in_flight_ > 0) wait(lock);
  drain();
  for (Block* block : blocks_) {
    drop_extent(block);
    if (block->state != State::kResident) continue;
    if (c10::StorageImpl* storage = owner(block)) guard::open(*storage, block->memory);
    block->was_guarded = block->guarded.exchange(false);
  }
  forget_recipes();  // from now on nobody sees what is written to operands
}

void Engine::stop(const std::function<void()>& before_memory_goes) {
  const GilRelease gil;
  Lock lock(*this);
  if (!active_) return;
  while (in_flight_ > 0) wait(lock);
  active_ = false;
  mode_changed();
  auto spill = std::move(spill_);
  auto host = std::move(host_);
  pages_.trim(pages_.cached());
  auto memories = give_device_memory_back();
  lock.unlock();
  if (host) host->synchronize();
  for (auto& [weak, memory] : memories) {
    const auto storage = weak.lock();
    if (!storage) continue;
    // The program frees it without a word of these: it takes it for memory of its first stream.
    for (const c10::Stream& stream : memory.streams) accelerator_->keep_until_done(memory.owner, stream);
    storage->set_data_ptr_noswap(std::move(memory.owner));  // the block dies
  }
  before_memory_goes();
  host.reset();
  spill.reset();
  if (!failure_.empty()) throw SpillError(std::exchange(failure_, {}));
}

// To the storages that PyTorch's allocator gave it to, as if we had never been there. The first further reference to a
// storage that Python owns takes the GIL, which nobody may wait for under the mutex: so the references are weak ones.
std::vector<std::pair<c10::weak_intrusive_ptr<c10::StorageImpl>, DeviceMemory>> Engine::give_device_memory_back() {
  std::vector<std::pair<c10::weak_intrusive_ptr<c10::StorageImpl>, DeviceMemory>> memories;
  for (Block* block : blocks_) {
    if (owner(block) == nullptr || !block->device) continue;
    if (block->ready) block->ready->block(block->device->home);
    used_ -= block->nbytes;
    block->memory = nullptr;
    block->device->streams.push_back(block->first_stream.value_or(accelerator_->stream()));
    memories.emplace_back(*block->storage, std::move(*block->device));
    block->device.reset();
  }
  return memories;
}

std::vector<std::pair<char*, size_t>> Engine::reserve_host(uint64_t nbytes) {
  const GilRelease gil;
  const Lock lock(*this);
  return host_ ? host_->reserve(nbytes) : std::vector<std::pair<char*, size_t>>();
}

HostSpeeds Engine::host_speeds(uint64_t nbytes) {
  const GilRelease gil;
  std::optional<Extent> extent;
  for (nbytes = round_up(nbytes, 2 * kPage); !extent && nbytes > 0; nbytes = nbytes / 2 / kPage * kPage) {
    const Lock lock(*this);
    extent = host_->allocate(nbytes);
  }
  if (!extent) throw SpillError("host memory has no page free to measure it with");
  const auto give_back = [&] {
    const Lock lock(*this);
    host_->free(*extent, false);
  };
  try {
    const HostSpeeds speeds = host_->measure(*extent);
    give_back();
    return speeds;
  } catch (...) {
    give_back();
    throw;
  }
}

void Engine::encode_by_default(CodecNumber codec) {
  const Lock lock(*this);
  default_codec_ = codec;
}

void Engine::reserve_spill(uint64_t nbytes) {
  const GilRelease gil;
  const Lock lock(*this);
  spill_->reserve(nbytes);
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
  // Not the only reference for a moment, see give_device_memory_back(): the caller has one as well.
  block->storage.emplace(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage));
}

void Engine::mark_written(Block* block) {
  ++block->version;
  // Its recipe makes what it was before; only while that is all there is of the data, it stays until it has been run.
  if (block->memory != nullptr || block->extent) discard_recipe(block);
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
  use_in(f, block);
  if (operand.write) mark_written(block);
  open(block, operand.storage);
}

void Engine::use_in(const Frame& f, Block* block) {
  if (f.stream) use_on(block, *f.stream);
  if (f.stream && f.also_stream) use_on(block, *f.also_stream);
}

void Engine::use_on(Block* block, const c10::Stream& stream) {
  if (!block->device) return;
  auto& streams = block->device->streams;
  if (std::find(streams.begin(), streams.end(), stream) != streams.end()) return;
  if (block->ready) {
    Frame& f = frame();
    const bool waits = f.training && f.stream && *f.stream == stream && !block->ready->query();
    if (waits) {
      end_wait();  // of other things
      begin_wait();
      note_stall(block->trace_index, false, 1);  // it is the device that waits
      f.waited = true;
    }
    block->ready->block(stream);
    if (waits) end_wait();
  }
  streams.push_back(stream);
}

// [Note: threads of process groups]
// They make tensors by ops and read their memory without one (gloo, of what is sparse or not contiguous), and so do parts
// of PyTorch's data parallelism on the program's threads (see teraio/engine/peers.py). What is born there gets its guard
// when another op uses it.
bool Engine::may_guard(const Block* block) const {
  if (block->guarded || block->exempt || closing_ || is_elsewhere(block)) return false;
  const Frame& f = frame();
  return !f.unguarded && (f.training || !guard::quiet() || on_python_thread());
}

// Makes a block that is in memory accessible; one that is leaving stays.
void Engine::open(Block* block, c10::StorageImpl* storage) {
  if (block->state == State::kLeaving) stay(block);
  if (block->state != State::kResident) return;
  guard::open(*storage, block->memory);
  if (!may_guard(block)) return;
  block->guarded = true;
  guard::set_message(*storage, describe_guard(block));
}

// From now on the block may leave, and only ops and holders that pin it can reach its data.
void Engine::shut(Block* block, c10::StorageImpl* storage) {
  if (!may_guard(block) || block->state != State::kResident) return;
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
  f.largest = 0;
  ++pinning_threads_;
  f.logical_begin = f.logical_peak = logical_;
}

void Engine::begin(Frame& f, const std::vector<Operand>& operands) {
  // What this frame has pinned stays pinned and open until it ends, so nested calls mostly find nothing to do. What
  // was born in it gets its guard: a result that only nested calls see, such as one saved for the backward pass, may
  // have to leave before the next op uses it.
  const bool known = std::all_of(operands.begin(), operands.end(), [&](const Operand& operand) {
    const Block& block = *operand.block;
    return !operand.write && block.frame.load(std::memory_order_relaxed) == &f && (block.guarded || block.exempt);
  });
  const bool begins = accelerator_ != nullptr && (f.depth == 1 || f.results > 0) && active() && !forked_;
  if (known && !begins) return;
  if (begins) look_at_device(f);
  bring_in(f, operands, begins);
  if (begins && f.depth == 1) begin_measuring(f);
}

void Engine::bring_in(Frame& f, const std::vector<Operand>& operands, bool begins) {
  GilRelease gil(std::defer_lock);
  Lock lock(*this);
  enter(f);
  if (!done_.empty()) drain();
  if (short_of_room_ > 0 && f.pinned.empty()) {
    const bool all_here = std::all_of(operands.begin(), operands.end(), [](const Operand& operand) {
      return !operand.data || operand.block->state == State::kResident;
    });
    if (!all_here) {
      lock.release_gil(gil);
      let_others_have_room(lock);
    }
  }
  bool missing = false, settled = true;
  for (const Operand& operand : operands) {
    link(operand.block, operand.storage);
    if (!operand.data) {
      shut(operand.block, operand.storage);  // all that an op may ever get of a gradient is a view
      continue;
    }
    pin(f, operand);
    missing = missing || operand.block->state != State::kResident;
    settled = settled && (!operand.write || operand.block->dependents.empty());
  }
  if (!fetch_queue_.empty()) {  // the op's own operands stay
    if (accelerator_ != nullptr) lock.release_gil(gil);  // its allocator may wait for the device
    start_waiting_fetches(lock);
  }
  const bool cramped = begins && used() + need_of(f) > budget_;
  if ((missing || cramped || !settled) && !forked_) {
    lock.release_gil(gil);
    if (missing || !settled) make_resident(f, lock);
    if (begins) {
      let_others_have_room(lock);
      make_room_if_possible(need_of(f), lock);  // it may need less
    }
  }
  end_wait();
  if (f.depth > 1) return;
  if (f.waited && begins && recording_ && !f.began) f.resumed = accelerator_->event(*f.stream, true);
  f.began = true;
}

// An exception can't leave an observer's callback. So the failure is kept: the op's next allocation raises
// it with its type, and the guard raises its text to an op that reads or writes the missing operand.
void Engine::make_resident(Frame& f, Lock& lock) {
  try {
    for (size_t i = 0; i < f.pinned.size(); ++i) {
      Block* block = f.pinned[i].block;
      if (block->dead) continue;
      if (block->state == State::kAway && !block->dropped()) {
        make_room(block->nbytes, lock, block->trace_index);
        if (block->state == State::kAway && !block->dropped() && !block->dead) start_coming(block, true, lock);
      }
      if (block->state == State::kComing && block->transfer != nullptr) spill_->promote(block->transfer);
    }
    for (size_t i = 0; i < f.pinned.size(); ++i) {
      if (!f.pinned[i].block->dead) fetch_now(f.pinned[i].block, lock);
    }
    for (size_t i = 0; i < f.pinned.size(); ++i) {
      if (f.pinned[i].write && !f.pinned[i].block->dead) settle(f.pinned[i].block, lock);
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
    const bool settled = !pinned.write || pinned.block->dependents.empty();
    if (pinned.block->state == State::kResident && settled) {
      use_in(f, pinned.block);
      open(pinned.block, storage);
    } else {
      guard::refuse(*storage, (f.over_budget ? "teraio.BudgetError: " : "teraio.SpillError: ") + f.error);
    }
  }
}

void Engine::give(Frame& f, const std::vector<Operand>& results) {
  const Lock lock(*this);
  for (const Operand& result : results) {
    link(result.block, result.storage);
    if (result.write) pin(f, result);
    shut(result.block, result.storage);
  }
}

bool Engine::counts(const Frame& f) const { return f.training && !f.apart && watching_ && !f.pinned.empty(); }

void Engine::end_op(Frame& f, const std::optional<Place>& place) {
  if (f.stream) note_need(f);
  GilRelease gil(std::defer_lock);
  Lock lock(*this);
  if (!done_.empty()) drain();
  ++op_counter_;
  end_wait();
  if (f.entered) --pinning_threads_;
  f.entered = f.began = false;
  if (place && !forked_) count_use(f, *place);
  for (const auto& pinned : f.pinned) {
    const bool hidden = f.opaque || (f.nested && pinned.block->dtype == c10::ScalarType::Long);
    if (hidden && !pinned.block->dead) {
      pinned.block->exempt = true;
      if (c10::StorageImpl* storage = owner(pinned.block)) guard::open(*storage, pinned.block->memory);
    }
    pinned.block->last_use = op_counter_;
    unpin(pinned.block);
  }
  f.pinned.clear();
  f.opaque = f.nested = f.waited = false;
  f.also_stream.reset();
  f.resumed.reset();
  f.error.clear();
  f.made = nullptr;
  if (f.recipe) old_recipes_.push_back(std::move(f.recipe));
  if (schedule_ && !forked_) run_due_actions();
  if (!fetch_queue_.empty() && !forked_) {
    if (accelerator_ != nullptr) lock.release_gil(gil);
    start_waiting_fetches(lock);
  }
  end_wait();
  f.stream.reset();
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
      if (pinned.block->dead && pinned.born) continue;  // it came and went within the op
      if (pinned.born) {
        born += static_cast<int64_t>(pinned.block->nbytes);
        recording_->births.push_back({pinned.block->id, pinned.block->nbytes, op});
      }
      const auto dtype = static_cast<uint8_t>(pinned.block->dtype.load(std::memory_order_relaxed));
      recording_->uses.push_back({pinned.block->id, op, pinned.write, dtype});
    }
    const int64_t end_ns = now_ns();
    const int64_t stall_ns = stats_.stall_ns;
    const int64_t duration = (end_ns - last_op_end_ns_) - (stall_ns - last_op_stall_ns_) - recompute_ns_;
    if (f.made != nullptr) recording_->repeatables.push_back({f.made->id, op});
    last_op_end_ns_ = end_ns;
    last_op_stall_ns_ = stall_ns;
    recompute_ns_ = 0;
    // The CPU's blocks are all that it takes; a device's allocator says what else the op took.
    const int64_t most = f.stream ? f.most : f.logical_peak - f.logical_begin;
    recording_->ops.push_back({f.name, place.module, static_cast<uint8_t>(place.phase), std::max<int64_t>(0, duration),
                               std::max<int64_t>(0, most - born), f.calls});
    if (f.stream) op_times_.push_back({std::move(f.resumed), accelerator_->event(*f.stream, true), 0});
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
  const auto repeat = schedule_->repeats.find(static_cast<uint32_t>(at));
  if (repeat != schedule_->repeats.end()) keep_recipe(f, repeat->second, static_cast<size_t>(at));
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

// ---------------------------------------------------------------- places, profile, plan

void Engine::anchor(uint64_t key) {
  if (!watching_) return;
  const Lock lock(*this);
  anchor_locked(key);
}

void Engine::anchor_locked(uint64_t key) {
  const uint32_t occurrence = occurrences_[key]++;
  if (recording_) {
    recording_->anchors.push_back({key, occurrence, static_cast<uint32_t>(recording_->ops.size())});
  }
  if (schedule_) schedule_->jump(key, occurrence);
}

void Engine::begin_iteration() {
  const Lock lock(*this);
  begin_iteration_locked();
}

void Engine::begin_iteration_locked() {
  drain();
  stats_ = {};
  if (spill_ && !forked_) spill_->take_work();
  stalls_.clear();
  device_waits_.clear();
  peak_ = used();
  logical_peak_ = logical_;
  last_op_stall_ns_ = recompute_ns_ = 0;
  iteration_begin_ns_ = last_op_end_ns_ = now_ns();
}

IterationStats Engine::end_iteration() {
  // Where nothing moves, results are not looked at. The allocator's lock is never taken under the mutex.
  const bool fits = accelerator_ != nullptr && !expects_moves_;
  const int64_t allocated_peak = fits ? accelerator_->allocated().peak : 0;
  const Lock lock(*this);
  drain();
  const int64_t end = now_ns();
  settle_waits();
  IterationStats stats = stats_;
  stats.duration_ns = end - iteration_begin_ns_;
  iteration_begin_ns_ = end;
  if (spill_ && !forked_) stats.spill = spill_->take_work();
  stats.stalls = longest(std::exchange(stalls_, {}));
  stats.peak_bytes = std::max(peak_.exchange(used()), static_cast<uint64_t>(allocated_peak));
  stats.live_bytes = static_cast<uint64_t>(std::exchange(logical_peak_, logical_));
  stats_ = {};
  needed_ = 0;
  last_op_stall_ns_ = 0;
  ++iteration_;
  occurrences_.clear();
  last_backward_module_ = kNoModule;
  forget_recipes();
  if (schedule_) {
    schedule_->restart();
    for (size_t s = 0; s < bound_.size(); ++s) {
      if (bound_[s] != nullptr && !schedule_->persistent[s]) unbind(bound_[s]);
    }
  }
  return stats;
}

void Engine::look_on(uint64_t nbytes, int64_t duration_ns) {
  const Lock lock(*this);
  beyond_ = nbytes;
  look_on_ns_ = duration_ns;
}

void Engine::mode_changed() {
  watching_ = recording_ || schedule_;
  wants_recipes_ = recording_ || (schedule_ && !schedule_->repeats.empty());
  wants_results_ = watching_ || (active_ && expects_moves_);
  measuring_ = active_ && accelerator_ != nullptr && expects_moves_ && (recording_ || !schedule_);
}

void Engine::record(bool on) {
  const Lock lock(*this);
  recording_ = on ? std::make_unique<Recording>() : nullptr;
  op_times_.clear();
  for (DeviceWait& wait : device_waits_) wait.op.reset();
  if (recording_ && accelerator_ != nullptr) {
    op_times_.push_back({std::nullopt, accelerator_->event(accelerator_->stream(), true), 0});
  }
  last_op_end_ns_ = now_ns();
  last_op_stall_ns_ = stats_.stall_ns;
  recompute_ns_ = 0;
  small_peak_ = small_.load();
  mode_changed();
}

Recording Engine::take_recording() {
  const GilRelease gil;
  Lock lock(*this);
  Recording recording;
  if (recording_) recording = std::move(*recording_);
  // What the device holds beside blocks when no op runs: storages too small to be blocks, workspaces of libraries.
  recording.untracked_peak_bytes = accelerator_ != nullptr ? std::max<int64_t>(0, beside_) : small_peak_.load();
  recording_.reset();
  mode_changed();
  if (accelerator_ != nullptr) time_ops(recording, lock);
  return recording;
}

// An op takes the device from the end of the op before to its own end, without what it waited for to begin.
void Engine::time_ops(Recording& recording, Lock& lock) {
  std::vector<OpTime> times = std::exchange(op_times_, {});
  std::deque<DeviceWait> waits = std::exchange(device_waits_, {});
  // What runs there first may call the host, where it may need the GIL or have a storage die.
  lock.unlock();
  for (const OpTime& time : times) time.end.synchronize();  // each on its own stream
  for (const DeviceWait& wait : waits) wait.end.synchronize();
  lock.lock();
  for (DeviceWait& wait : waits) settle_wait(wait, times);
  if (times.size() != recording.ops.size() + 1) return;
  for (size_t i = 0; i < recording.ops.size(); ++i) {
    const OpTime& time = times[i + 1];
    const c10::Event& begin = time.begin ? *time.begin : times[i].end;
    const auto duration_ns = static_cast<int64_t>(begin.elapsedTime(time.end) * 1e6);
    recording.ops[i].duration_ns = std::max<int64_t>(0, duration_ns - time.waited_ns);
  }
}

void Engine::follow(std::unique_ptr<Schedule> schedule, const std::vector<std::pair<int32_t, uint64_t>>& bound) {
  const Lock lock(*this);
  unfollow_locked();
  schedule_ = std::move(schedule);
  bound_.assign(schedule_->persistent.size(), nullptr);
  for (const auto& [storage, id] : bound) {
    Block* block = find_block(id);
    if (block != nullptr && !block->dead) bind(block, storage);
  }
  mode_changed();
}

void Engine::unfollow() {
  const Lock lock(*this);
  unfollow_locked();
  mode_changed();
}

void Engine::guard_quietly() {
  const Lock lock(*this);
  if (!active_ || guard::quiet()) return;
  guard::be_quiet(true);
  for (Block* block : blocks_) {
    c10::StorageImpl* storage = owner(block);
    if (storage == nullptr || !block->guarded || block->exempt || block->pins > 0) continue;
    guard::close(*storage);
  }
}

bool Engine::guards_quietly() const { return guard::quiet(); }

void Engine::expect_moves(bool any) {
  const Lock lock(*this);
  expects_moves_ = any;
  mode_changed();
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
  const Lock lock(*this);
  block->name = std::move(name);
  link(block, storage);
  shut(block, storage);
}

void Engine::hold_locked(Block* block, c10::StorageImpl* storage, Lock& lock) {
  if (block->state != State::kResident) let_others_have_room(lock);
  link(block, storage);
  ++block->pins;
  try {
    fetch_now(block, lock);
    if (block->device) use_on(block, accelerator_->stream());  // whoever holds it works there
    settle(block, lock);  // and may write to it
  } catch (...) {
    unpin(block);
    throw;
  }
  end_wait();
  open(block, storage);
}

void Engine::hold(Block* block, c10::StorageImpl* storage) {
  const GilRelease gil;
  Lock lock(*this);
  hold_locked(block, storage, lock);
  ++block->holders;
}

std::vector<Block*> Engine::hold_pinned(const Frame& f, bool only_born) {
  const Lock lock(*this);
  std::vector<Block*> held;
  for (const auto& pinned : f.pinned) {
    if (pinned.block->dead || (only_born && !pinned.born)) continue;
    ++pinned.block->pins;
    ++pinned.block->holders;
    held.push_back(pinned.block);
  }
  return held;
}

void Engine::release(Block* block, bool written) {
  const Lock lock(*this);
  --block->holders;
  if (written) mark_written(block);
  Frame* frame = block->frame;
  const bool last = block->pins == 1;
  unpin(block);  // the last pin of a dead block takes the block along
  if (!last) block->frame = frame;
  notify();
}

bool Engine::send_away(Block* block, c10::StorageImpl* storage) {
  const GilRelease gil;
  Lock lock(*this);
  if (!active() || forked_) return false;
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
    if (block->state == State::kLeaving && block->transfer == nullptr) {
      has_left(block);
      continue;
    }
    wait(lock);
  }
  return true;
}

void* Engine::publish(Block* block, c10::StorageImpl* storage, bool lent) {
  const GilRelease gil;
  Lock lock(*this);
  hold_locked(block, storage, lock);
  if (block->address == nullptr && !block->exempt && !block->device) {
    while (block->transfer != nullptr) wait(lock, block->trace_index);  // it would go on from the old place
    // What was born on this thread outside of an op stays pinned until the next one, and its maker asks here.
    const Frame& f = frame();
    const bool born = f.depth == 0 && std::any_of(f.pinned.begin(), f.pinned.end(),
                                                  [&](const Frame::Pinned& pinned) { return pinned.block == block; });
    if (block->pins == (born ? 2 : 1) && block->transfer == nullptr) {
      void* address = ::mmap(nullptr, block->nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (address != MAP_FAILED) {
        std::memcpy(address, block->memory, block->nbytes);
        pages_.give(block->memory, block->nbytes);
        block->memory = block->address = static_cast<char*>(address);
        guard::open(*storage, block->memory);
      }
    }
    if (block->address == nullptr) block->exempt = true;
  }
  block->published_iteration = iteration_;
  try {
    settle(block, lock);  // what another thread has begun to make of it during the waits
  } catch (...) {
    unpin(block);
    throw;
  }
  if (lent) block->lent_iteration = iteration_;
  mark_written(block);  // whoever has the address may write to it
  void* address = block->memory;
  unpin(block);
  return address;
}

State Engine::state_of(Block* block) {
  const Lock lock(*this);
  drain();
  return block->state;
}

void Engine::stress(unsigned max_delay_us) {
  const Lock lock(*this);
  poison_ = max_delay_us > 0;
  if (spill_) spill_->set_delay(max_delay_us);
  if (host_) host_->stress(poison_);
}

void Engine::be_patient(int64_t duration_ns) {
  const Lock lock(*this);
  patience_ns_ = duration_ns;
}

Engine::Totals Engine::totals() {
  const Lock lock(*this);
  drain();
  uint64_t away = 0;
  for (const Block* block : blocks_) away += block->state == State::kAway ? block->nbytes : 0;
  return {used(), budget_, pages_.cached(), spill_ ? spill_->reserved() : 0, away};
}

std::vector<Engine::Live> Engine::live_blocks() {
  const Lock lock(*this);
  std::vector<Live> live;
  for (const Block* block : blocks_) {
    if (!block->dead && !is_elsewhere(block)) live.push_back({block->id, block->nbytes, block->guarded && !block->exempt});
  }
  return live;
}

uint32_t Engine::intern(const std::string& name) {
  const Lock lock(*this);
  const auto [entry, added] = op_ids_.try_emplace(name, static_cast<uint32_t>(op_names_.size()));
  if (added) op_names_.push_back(name);
  return entry->second;
}

std::vector<std::string> Engine::op_names() {
  const Lock lock(*this);
  return op_names_;
}

std::string Engine::describe(const Block* block) const {
  return (block->name.empty() ? "a storage" : "the storage " + block->name) + " of " + format_size(block->nbytes);
}

std::string Engine::describe_elsewhere(const Block* block) const {
  return describe(block) +
         " is on SSD, which only the process that called teraio.offload can read. What a process that is forked off reads, "
         "such as a worker of a DataLoader, is best made before teraio.offload, or put in shared memory by "
         "tensor.share_memory_(); or hold it in memory by teraio.resident before the fork.";
}

std::string Engine::describe_failure(const Block* block, const Transfer& transfer) const {
  const bool write = transfer.direction == Transfer::Direction::kWrite;
  const int error = transfer.error;
  const std::string cause = !transfer.error_text.empty() ? transfer.error_text
                            : error == ENODATA           ? "the file is shorter than what was written to it"
                            : error == EBADMSG           ? "the file holds other bytes than were written to it"
                                                         : std::strerror(error);
  return std::string(write ? "writing " : "reading ") + describe(block) + (write ? " to" : " from") +
         " the spill file in " + transfer.error_path + " failed at offset " + std::to_string(transfer.error_offset) +
         ": " + cause + " (errno " + std::to_string(error) + "). " +
         (write ? "The data is still in memory. Free space there or pass another folder as `ssd`."
                : "Check the drive; if it is the file system that failed, pass another folder as `ssd`.");
}

// Storages without a name are many and short-lived: formatting their size each time would cost more than the op.
std::string Engine::describe_guard(const Block* block) const {
  return "teraio moves " + (block->name.empty() ? std::string("this storage") : describe(block)) +
         " between memory and SSD; only PyTorch's ops can reach its data at any time. Wrap code that "
         "reads or writes raw memory in `with teraio.resident(tensor):`.";
}

// The least budget for an op that lacks so much, as far as it has asked for memory.
uint64_t Engine::needed_for(uint64_t nbytes) const {
  uint64_t missing = 0;
  for (const auto& [block, write, born] : frame().pinned) {
    if (block->state == State::kAway && !block->dead) missing += block->nbytes;
  }
  return used() + std::max(nbytes, missing);  // all operands that are still to come, not only the first of them
}

std::string Engine::over_budget(uint64_t nbytes, bool looking_on) const {
  const Frame& f = frame();
  uint64_t pinned = 0;
  for (const auto& entry : f.pinned) pinned += entry.block->memory != nullptr ? entry.block->nbytes : 0;
  const uint64_t least = needed_for(nbytes);
  uint64_t unused = 0;
  for (const Block* block : blocks_) {
    if (!block->storage && !block->dead && block->pins == 0) unused += block->nbytes;
  }
  const std::string of_it = unused == 0 ? "" : " (of it " + format_size(unused) + " are results that no op has used yet)";
  const std::string op = f.depth > 0 && f.name < op_names_.size() ? "op " + op_names_[f.name] : "an allocation";
  return op + " needs " + format_size(least - used()) + " more, holds " + format_size(pinned) + " of operands and results, and " +
         format_size(used() - pinned) + " beside it can't leave memory now" + of_it + "; the budget is " + format_size(budget_) +
         ". Pass memory_budget=" + std::to_string(least + least / kSlackShare) +
         " or more, which is a little above what " +
         (looking_on ? "this iteration needed at most" : "the op has asked for so far") +
         ", or make the op smaller, with a smaller batch for example.";
}

void Engine::after_fork_in_child() {
  // The I/O threads live in the parent only, and the spill space belongs to it.
  forked_ = active_;
  done_.clear();
  any_done_ = false;
  // Other threads don't live on, and a condition variable that counts them among its waiters would wait for them.
  new (&changed_) std::condition_variable;
  waiters_ = waiting_threads_ = short_of_room_ = 0;
  pinning_threads_ = frame().entered ? 1 : 0;
  in_flight_ = 0;
  for (Block* block : blocks_) {
    if (block->state == State::kLeaving) stay(block);
    block->transfer = nullptr;
    if (block->state == State::kResident) continue;
    block->state = State::kAway;
    if (c10::StorageImpl* storage = owner(block)) {
      guard::set_message(*storage, "teraio: " + describe_elsewhere(block));
    }
  }
  mutex_.unlock();
}

}  // namespace teraio
