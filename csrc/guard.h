// The guard of a storage: closed, nobody gets at its data without an op.
// In: a StorageImpl. Out: its access flag and data pointer changed. Must not know: budgets, plans, files.
//
// [Note: loud and quiet guards]
// A loud guard raises, with a text of ours, whenever anything of the storage's data pointer is asked for. PyTorch's data
// parallelism asks in each backward pass whether two gradients share a pointer, a profile with stacks notes those of
// parameters, and autograd notes on which streams gradients are used, though they don't read through them. A quiet guard
// stands that: the pointer is null. Who reads through it gets PyTorch's own error or a segmentation fault.
#pragma once
#include <c10/core/StorageImpl.h>

#include <string>

namespace teraio::guard {

// Whether guards that close from now on are quiet; they are loud at first.
void be_quiet(bool quiet);
bool quiet();

// Ops must open the guard first.
void close(c10::StorageImpl& storage);
// The same, and the memory goes.
void close_empty(c10::StorageImpl& storage);
// The data is at `memory` from now on; owner and deleter stay as they are.
void open(c10::StorageImpl& storage, void* memory);
// Closes it for the running op, which is to fail with this text; loud in any case.
void refuse(c10::StorageImpl& storage, std::string message);

// The text that an access through a loud guard raises.
void set_message(c10::StorageImpl& storage, std::string message);

}  // namespace teraio::guard
