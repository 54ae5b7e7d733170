#include "allocator.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

#include "engine.h"

namespace teraio {
namespace {

constexpr size_t kAlignment = 64;  // what PyTorch's own allocator gives
constexpr uint8_t kPriority = 100;

// What is taken (or, with a minus, given back), for PyTorch's profiler of memory. A block is known there by itself, as it
// has no memory where it is away.
void tell_profiler(void* memory, int64_t nbytes) {
  if (!c10::memoryProfilingEnabled()) return;
  const Engine::Totals totals = Engine::instance().totals();
  c10::reportMemoryUsageToProfiler(memory, nbytes, totals.used, totals.used, c10::Device(c10::kCPU));
}

void block_released(void* context) {
  auto* block = static_cast<Block*>(context);
  if (Engine::instance().accelerator() == nullptr) tell_profiler(block, -static_cast<int64_t>(block->nbytes));
  Engine::instance().storage_died(block);
}

// [Note: first sight]
// Ops look at a storage's data pointer without a lock, and several threads may meet a storage for the first time at
// once. So the deleter that tells of a block comes last, and who finds another one looks again under a mutex.
void block_unsettled(void* context) { block_released(context); }

Block* settle(at::DataPtr& data, void* memory, Block* block, c10::Device device) {
  data = at::DataPtr(memory, block, &block_unsettled, device);
  std::atomic_thread_fence(std::memory_order_release);
  (void)data.compare_exchange_deleter(&block_unsettled, &block_released);
  return block;
}

Block* settled(const at::DataPtr& data) {
  return data.get_deleter() == &block_released ? static_cast<Block*>(data.get_context()) : nullptr;
}

// [Note: fresh memory]
// Libraries that allocate without a storage (oneDNN's scratchpads) demand that a pointer's context be the pointer,
// and free it by pointer alone. So memory is handed out that way, and its block is found by address. The first
// time a storage is seen, its context becomes the block, whatever its address will be from then on.
struct FreshBlocks {
  std::mutex mutex;
  std::unordered_map<void*, Block*> by_memory;

  void add(Block* block) {
    const std::lock_guard<std::mutex> lock(mutex);
    by_memory.emplace(block->memory, block);
  }
  Block* take(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex);
    return take_locked(memory);
  }
  Block* take_locked(void* memory) {
    const auto found = by_memory.find(memory);
    if (found == by_memory.end()) return nullptr;
    Block* block = found->second;
    by_memory.erase(found);
    return block;
  }
};

FreshBlocks& fresh_blocks() {
  static auto* blocks = new FreshBlocks;
  return *blocks;
}

void small_released(void* memory) {
  if (memory == nullptr) return;
  const size_t nbytes = malloc_usable_size(memory);
  tell_profiler(memory, -static_cast<int64_t>(nbytes));
  Engine::instance().small_freed(nbytes);
  std::free(memory);
}

void fresh_released(void* memory) {
  if (Block* block = fresh_blocks().take(memory)) {
    block_released(block);
  } else if (memory != nullptr && malloc_usable_size(memory) >= 2 * Engine::instance().min_block()) {
    std::free(memory);  // so large a one that is no block was taken before the run, and not counted
  } else {
    small_released(memory);
  }
}

// [Note: memory of I/O threads]
// A codec written in Python computes on I/O threads. What it takes there must not wait until something has left, for
// these threads are what makes it leave. So it is no block and is not counted: the runtime has set it aside from the
// budget (see teraio/engine/encoded_path.py).
void uncounted_released(void* memory) { std::free(memory); }

class BlockAllocator final : public c10::Allocator {
 public:
  at::DataPtr allocate(size_t nbytes) override {
    // A storage of a former run on the CPU is resized with what it was made with.
    if (Engine::instance().accelerator() != nullptr) return c10::GetDefaultCPUAllocator()->allocate(nbytes);
    const c10::Device cpu(c10::kCPU);
    if (nbytes == 0) return {nullptr, nullptr, &small_released, cpu};
    const bool uncounted = SpillSpace::on_io_thread();
    if (!uncounted && nbytes >= Engine::instance().min_block()) {
      try {
        Block* block = Engine::instance().allocate(nbytes);
        fresh_blocks().add(block);
        tell_profiler(block, static_cast<int64_t>(block->nbytes));
        return {block->memory, block->memory, &fresh_released, cpu};
      } catch (...) {
        Engine::frame().refused = true;
        throw;
      }
    }
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, nbytes) != 0) throw std::bad_alloc();
    if (uncounted) return {memory, memory, &uncounted_released, cpu};
    try {
      Engine::instance().small_allocated(malloc_usable_size(memory));
    } catch (...) {
      std::free(memory);
      Engine::frame().refused = true;
      throw;
    }
    tell_profiler(memory, static_cast<int64_t>(malloc_usable_size(memory)));
    return {memory, memory, &small_released, cpu};
  }

  at::DeleterFnPtr raw_deleter() const override { return &fresh_released; }

  void copy_data(void* to, const void* from, size_t nbytes) const override { std::memcpy(to, from, nbytes); }
};

// Libraries that free by pointer alone do so through whichever allocator is there by then: what they took while a run was
// on, and free after it, is known here only.
class AllocatorAfterRuns final : public c10::Allocator {
 public:
  at::DataPtr allocate(size_t nbytes) override { return c10::GetDefaultCPUAllocator()->allocate(nbytes); }
  at::DeleterFnPtr raw_deleter() const override { return &released; }
  void copy_data(void* to, const void* from, size_t nbytes) const override { std::memcpy(to, from, nbytes); }

 private:
  static void released(void* memory) {
    if (Block* block = fresh_blocks().take(memory)) {
      block_released(block);
    } else {
      c10::GetDefaultCPUAllocator()->raw_deleter()(memory);
    }
  }
};

BlockAllocator& allocator() {
  static auto* instance = new BlockAllocator;
  return *instance;
}

}  // namespace

void install_allocator() { c10::SetCPUAllocator(&allocator(), kPriority); }

void uninstall_allocator() {
  static auto* instance = new AllocatorAfterRuns;
  c10::SetCPUAllocator(instance, kPriority);
}

std::mutex& fresh_blocks_mutex() { return fresh_blocks().mutex; }

std::mutex& first_sight_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

Block* block_of(c10::StorageImpl* storage) {
  at::DataPtr& data = storage->_mutable_data_ptr_no_checks();
  if (Block* block = settled(data)) return block;
  const auto deleter = data.get_deleter();
  if (deleter != &fresh_released && deleter != &block_unsettled && deleter != &block_released) return nullptr;
  const std::lock_guard<std::mutex> lock(fresh_blocks().mutex);
  if (Block* block = settled(data)) return block;
  Block* block = fresh_blocks().take_locked(data.get());
  if (block == nullptr) return nullptr;
  void* memory = data.release_context();
  return settle(data, memory, block, data.device());
}

Block* block_of_meta(c10::StorageImpl* storage) {
  if (Block* block = block_of(storage)) return block;
  const bool small = storage->nbytes() < Engine::instance().min_block();
  if (small || storage->device_type() != c10::kMeta) return nullptr;
  Block* block = Engine::instance().allocate_without_memory(storage->nbytes());
  storage->set_data_ptr_noswap(at::DataPtr(nullptr, block, &block_released, c10::Device(c10::kMeta)));
  return block;
}

Block* block_on_device(c10::StorageImpl* storage) {
  at::DataPtr& data = storage->_mutable_data_ptr_no_checks();
  Engine& engine = Engine::instance();
  const Accelerator* accelerator = engine.accelerator();
  if (data.device() != accelerator->device()) return nullptr;  // also what a run on the CPU has left
  if (Block* block = settled(data)) return block;
  if (storage->nbytes() < engine.min_block()) return nullptr;
  const std::lock_guard<std::mutex> lock(first_sight_mutex());
  if (Block* block = settled(data)) return block;
  if (data.get() == nullptr || !accelerator->owns(data)) return nullptr;
  void* memory = data.get();
  Block* block = engine.take_over(std::exchange(data, at::DataPtr()), storage);
  return settle(data, memory, block, accelerator->device());
}

Block* rehome(c10::StorageImpl* storage) {
  if (Engine::instance().accelerator() != nullptr) return block_on_device(storage);
  if (Block* block = block_of(storage)) return block;
  const at::DataPtr& data = storage->_mutable_data_ptr_no_checks();
  // From the default allocator, and nobody else's: an owner beside the storage would be the context.
  const bool plain = storage->device_type() == c10::kCPU && data.get() != nullptr &&
                     data.get_context() == data.get() &&
                     data.get_deleter() == c10::GetDefaultCPUAllocator()->raw_deleter();
  const size_t nbytes = storage->nbytes();
  if (!plain || nbytes < Engine::instance().min_block()) return nullptr;
  Block* block = Engine::instance().allocate(nbytes, false);
  std::memcpy(block->memory, data.get(), nbytes);
  storage->set_data_ptr_noswap(at::DataPtr(block->memory, block, &block_released, c10::Device(c10::kCPU)));
  if (storage->resizable()) storage->set_allocator(&allocator());
  return block;
}

}  // namespace teraio
