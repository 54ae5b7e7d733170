// The engine's recomputation: results that are given up without a copy, and made again by running their op.
#include <algorithm>
#include <cstring>
#include <utility>

#include "allocator.h"
#include "clock.h"
#include "engine.h"
#include "errors.h"
#include "guard.h"

namespace teraio {
namespace {

thread_local Frame* own_frame = nullptr;

// The exception being handled, as one that ops that wait for the result can fail with.
std::exception_ptr failure_of_op() {
  try {
    throw;
  } catch (const torch::PyTorchError&) {
    return std::current_exception();
  } catch (const std::bad_alloc&) {
    return std::current_exception();
  } catch (const c10::OutOfMemoryError& error) {
    return std::make_exception_ptr(BudgetError(std::string("making a result again failed: ") + error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    return std::make_exception_ptr(SpillError(std::string("making a result again failed: ") + error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return std::make_exception_ptr(SpillError(std::string("making a result again failed: ") + error.what()));
  }
}

}  // namespace

Frame& Engine::frame() {
  static thread_local Frame frame;
  return own_frame != nullptr ? *own_frame : frame;
}

Engine::OwnFrame::OwnFrame(uint64_t need) : outer_(own_frame) {
  frame_.apart = true;
  frame_.apart_need = need;
  frame_.training = frame().training;
  own_frame = &frame_;
}

Engine::OwnFrame::~OwnFrame() { own_frame = outer_; }

bool Engine::wants_recipe(const Frame& f) {
  if (!wants_recipes_.load(std::memory_order_relaxed) || !f.training || f.apart) return false;
  const Lock lock(*this);
  return recording_ || (schedule_ && schedule_->repeats_next(f.name));
}

// At the end of an op whose result the plan makes again.
void Engine::keep_recipe(Frame& f, int32_t storage, size_t op) {
  Block* block = bound_[static_cast<size_t>(storage)];
  if (!f.recipe || block == nullptr || block != f.made) return;
  std::vector<Block*> operands;
  for (const uint64_t id : f.recipe->operands()) {
    Block* operand = find_block(id);
    if (operand == nullptr) return;
    operands.push_back(operand);
    // Somebody may write to such a one without an op.
    if (operand->exempt || operand->holders > 0 || operand->published_iteration == iteration_) return;
  }
  for (Block* operand : operands) operand->dependents.push_back(block->id);
  block->recipe = std::move(f.recipe);
  // Operands that are larger than planned make more.
  const double growth = static_cast<double>(block->nbytes) / static_cast<double>(std::max<uint64_t>(planned_bytes(block), 1));
  block->recipe_need = static_cast<uint64_t>(std::max(growth, 1.0) * static_cast<double>(schedule_->needs[op]));
}

void Engine::discard_recipe(Block* block) {
  if (block->recipe) old_recipes_.push_back(std::move(block->recipe));
}

// What was not given up within its iteration is kept from now on, or operands would live as long as their results. Blocks
// that live long would have ever more dependents.
void Engine::forget_recipes() {
  for (Block* block : blocks_) {
    if (!block->dropped() && block->state != State::kComing) discard_recipe(block);
  }
  for (Block* block : blocks_) {
    auto& dependents = block->dependents;
    const auto is_gone = [&](uint64_t id) {
      const Block* dependent = find_block(id);
      return dependent == nullptr || !dependent->recipe;
    };
    dependents.erase(std::remove_if(dependents.begin(), dependents.end(), is_gone), dependents.end());
  }
}

// Gives up a block's memory if it can be made again; nothing is copied.
bool Engine::drop(Block* block) {
  if (!block->recipe || block->transfer != nullptr) return false;
  c10::StorageImpl* storage = owner(block);
  if (storage == nullptr) return false;
  guard::close_empty(*storage);
  give_memory(block);  // what may still be coming from the extent comes before the memory is used again
  drop_extent(block);
  block->state = State::kAway;
  return true;
}

// Other threads may have sent what this one has just made away.
void Engine::keep_here(Block* made, Lock& lock) {
  made->exempt = true;
  ++made->pins;
  try {
    fetch_now(made, lock);
    while (made->transfer != nullptr) wait(lock);
  } catch (...) {
    --made->pins;
    throw;
  }
  --made->pins;
}

// Gives a block the memory of what was made in its place. Throws std::bad_alloc.
void Engine::take_from(Block* made, Block* block) {
  if (block->address != nullptr) {  // where somebody expects it
    used_ -= made->nbytes;
    try {
      take_memory(block);
    } catch (...) {
      used_ += made->nbytes;
      throw;
    }
    std::memcpy(block->memory, made->memory, block->nbytes);
    pages_.give(std::exchange(made->memory, nullptr), made->nbytes);
    return;
  }
  block->device = std::exchange(made->device, std::nullopt);
  block->memory = std::exchange(made->memory, nullptr);
  if (made->copied) block->copied = std::exchange(made->copied, std::nullopt);
  // Programs that wait for one stream's work in another's did so when the result was made at first.
  if (block->device) let_wait(block->device->home, made->ready);
  if (block->device) block->ready = accelerator_->event(block->device->home);
}

// [Note: reading unseen]
// A program lets one stream wait for another where it knows of a need. It does not know that a result was made again, on
// the stream that is current now, from operands that it had used on other streams only. So whoever uses one of them
// next, to write to it above all, waits for that.
void Engine::note_reading(const Recipe& recipe) {
  const c10::Stream stream = accelerator_->stream();
  for (const uint64_t id : recipe.operands()) {
    Block* operand = find_block(id);
    if (operand == nullptr || !operand->device) continue;
    const auto& streams = operand->device->streams;
    // It may have left and come back since, for another thread.
    if (std::find(streams.begin(), streams.end(), stream) == streams.end()) continue;
    operand->ready = accelerator_->event(stream);
    for (const c10::Stream& other : streams) {
      if (other != stream) let_wait(other, operand->ready);
    }
  }
}

// Nor is the memory of small ones that the recipe keeps given back before. Not under the mutex: see [Note: two locks].
void Engine::keep_copies(const Recipe& recipe) const {
  const c10::Stream stream = accelerator_->stream();
  for (const at::Tensor& copy : recipe.copies()) {
    const at::DataPtr& memory = copy.storage().data_ptr();
    if (accelerator_->owns(memory)) accelerator_->keep_until_done(memory, stream);
  }
}

// Runs the op that made a block again and gives it the result's memory. The mutex is given up meanwhile. Throws what
// the op throws; then the block is as before.
void Engine::recompute(Block* block, Lock& lock) {
  auto recipe = block->recipe;
  for (const uint64_t id : recipe->operands()) {
    const Block* operand = find_block(id);
    if (operand == nullptr || operand->dead) {
      throw SpillError("making " + describe(block) +
                       " again failed: the program has replaced the memory of a tensor it is made from. Pass "
                       "recompute=False to teraio.offload.");
    }
  }
  Frame& f = frame();
  const int waiting = f.entered ? 1 : 0;
  end_wait();
  const int64_t begin = now_ns(), noted = noted_ns();
  block->state = State::kComing;
  ++block->pins;  // so that it stays what it is
  waiting_threads_ += waiting;
  notify();  // whoever makes room may have counted on this op to end, and have the turn that this one waits for
  lock.unlock();
  at::Tensor result;
  std::exception_ptr failure;
  try {
    const OwnFrame frame(block->recipe_need);
    result = recipe->run();
    if (Engine::frame().refused) throw BudgetError("there was too little memory for its op");
  } catch (...) {
    failure = failure_of_op();
  }
  lock.lock();
  waiting_threads_ -= waiting;
  bool fits = false;
  Block* made = failure ? nullptr : block_of(result.storage().unsafeGetStorageImpl());
  try {
    if (accelerator_ != nullptr) note_reading(*recipe);
    if (made != nullptr) keep_here(made, lock);
    fits = !failure && made != nullptr && made->nbytes == block->nbytes && made->pins == 0;
    if (fits) take_from(made, block);
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  if (!failure && fits) {
    guard::close_empty(*result.storage().unsafeGetStorageImpl());
    stats_.recomputed_bytes += block->nbytes;
    block->state = State::kResident;
    if (c10::StorageImpl* storage = owner(block)) {
      guard::set_message(*storage, describe_guard(block));
      if (block->pins > 1) guard::open(*storage, block->memory);
    }
    discard_recipe(block);
    if (block->trace_index >= 0) {
      const int32_t again = schedule_->again[static_cast<size_t>(block->trace_index)];
      if (again >= 0) bind(block, again);
    }
  } else {
    block->state = State::kAway;
  }
  f.waited = true;
  if (f.training) recompute_ns_ += (now_ns() - begin) - (noted_ns() - noted);
  if (--block->pins == 0 && block->dead) bury(block);
  notify();
  lock.unlock();
  result.reset();
  try {
    if (accelerator_ != nullptr) keep_copies(*recipe);
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  recipe.reset();  // storages may die with it
  lock.lock();
  if (failure) std::rethrow_exception(failure);
  if (!fits) throw SpillError("an op that was run again gave another result; pass recompute=False to teraio.offload.");
}

// What was dropped and is made from this block is made again while it still can be.
void Engine::settle(Block* block, Lock& lock) {
  while (!block->dependents.empty()) {
    Block* dependent = find_block(block->dependents.back());
    if (dependent != nullptr && !dependent->dead && dependent->recipe) {
      if (dependent->dropped() || dependent->state == State::kComing) {
        fetch_now(dependent, lock);  // it may be gone then
        continue;
      }
      discard_recipe(dependent);
    }
    block->dependents.pop_back();
  }
}

}  // namespace teraio
