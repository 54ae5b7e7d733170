// The guard of a storage: closed, every access to its data raises instead of reading memory.
// In: a StorageImpl. Out: its access flag and data pointer changed. Must not know: budgets, plans, files.
#pragma once
#include <c10/core/StorageImpl.h>

#include <string>

namespace teraio::guard {

// Makes data_ptr(), numpy() and foreign code raise; ops must open the guard first.
void close(c10::StorageImpl& storage);
void open(c10::StorageImpl& storage);

// The text that an access through a closed guard raises.
void set_message(c10::StorageImpl& storage, std::string message);

// Points the storage at other memory (or none); owner and deleter stay as they are.
void set_memory(c10::StorageImpl& storage, void* memory);

}  // namespace teraio::guard
