#include "allocator.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "engine.h"

namespace teraio {
namespace {

constexpr size_t kAlignment = 64;  // what PyTorch's own allocator gives
constexpr uint8_t kPriority = 100;

void block_released(void* context) { Engine::instance().storage_died(static_cast<Block*>(context)); }

void small_released(void* memory) {
  if (memory == nullptr) return;
  Engine::instance().small_freed(malloc_usable_size(memory));
  std::free(memory);
}

class BlockAllocator final : public c10::Allocator {
 public:
  at::DataPtr allocate(size_t nbytes) override {
    const c10::Device cpu(c10::kCPU);
    if (nbytes == 0) return {nullptr, nullptr, &small_released, cpu};
    if (nbytes >= Engine::instance().min_block()) {
      Block* block = Engine::instance().allocate(nbytes);
      return {block->memory, block, &block_released, cpu};
    }
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, nbytes) != 0) throw std::bad_alloc();
    try {
      Engine::instance().small_allocated(malloc_usable_size(memory));
    } catch (...) {
      std::free(memory);
      throw;
    }
    return {memory, memory, &small_released, cpu};
  }

  // A block is not its memory's address, so the raw interface can't be served.
  at::DeleterFnPtr raw_deleter() const override { return nullptr; }

  void copy_data(void* to, const void* from, size_t nbytes) const override { std::memcpy(to, from, nbytes); }
};

BlockAllocator& allocator() {
  static auto* instance = new BlockAllocator;
  return *instance;
}

}  // namespace

void install_allocator() { c10::SetCPUAllocator(&allocator(), kPriority); }

void uninstall_allocator() { c10::SetCPUAllocator(c10::GetDefaultCPUAllocator(), kPriority); }

Block* block_of(c10::StorageImpl* storage) {
  const at::DataPtr& data = storage->_mutable_data_ptr_no_checks();
  return data.get_deleter() == &block_released ? static_cast<Block*>(data.get_context()) : nullptr;
}

Block* rehome(c10::StorageImpl* storage) {
  if (Block* block = block_of(storage)) return block;
  const at::DataPtr& data = storage->_mutable_data_ptr_no_checks();
  const bool plain = storage->device_type() == c10::kCPU && data.get() != nullptr && storage->resizable() &&
                     data.get_deleter() == c10::GetDefaultCPUAllocator()->raw_deleter();
  const size_t nbytes = storage->nbytes();
  if (!plain || nbytes < Engine::instance().min_block()) return nullptr;
  Block* block = Engine::instance().allocate(nbytes, false);
  std::memcpy(block->memory, data.get(), nbytes);
  storage->set_data_ptr_noswap(at::DataPtr(block->memory, block, &block_released, c10::Device(c10::kCPU)));
  storage->set_allocator(&allocator());
  return block;
}

}  // namespace teraio
