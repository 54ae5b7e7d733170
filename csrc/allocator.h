// PyTorch's CPU allocator while teraio runs: every storage of some size is a block of the engine.
// In: PyTorch's allocations. Out: blocks as owners of storages. Must not know: ops, plans, files.
#pragma once
#include <c10/core/StorageImpl.h>

#include <mutex>

#include "block.h"

namespace teraio {

void install_allocator();
void uninstall_allocator();

// Who holds the engine's mutex too has taken that after the first of these, and before the second.
std::mutex& first_sight_mutex();
std::mutex& fresh_blocks_mutex();

// The block behind a storage, or nullptr for memory that is not ours.
Block* block_of(c10::StorageImpl* storage);

// The block of a storage of the meta device, made at first sight; nullptr for other or small storages. Its life
// is that of its storage, so a recording has births, uses and deaths of storages that have no data.
Block* block_of_meta(c10::StorageImpl* storage);

// The block of a storage of the engine's device, made at first sight; nullptr for storages of other devices, small
// ones, and memory that PyTorch's allocator did not give.
Block* block_on_device(c10::StorageImpl* storage);

// Moves the data of a storage from elsewhere into a block, if it is PyTorch's own memory that nothing else shares.
// Returns the block, or nullptr where it stays foreign. Throws as Engine::allocate does.
Block* rehome(c10::StorageImpl* storage);

}  // namespace teraio
