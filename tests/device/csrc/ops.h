// Ops that are no kernels: memory, views, copies between devices.
#pragma once

#include <c10/core/StorageImpl.h>

#include <cstddef>

namespace sim {

// In stream order: what is in the storage is copied into a new block; what is added is left uninitialised.
void resize_bytes(c10::StorageImpl& storage, size_t nbytes);

}  // namespace sim
