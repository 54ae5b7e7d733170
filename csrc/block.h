// A block: the memory behind one storage, wherever it is just now.
// Its address is the storage's identity (StorageImpl addresses are reused, and a storage away has no memory).
#pragma once
#include <c10/core/Event.h>
#include <c10/core/ScalarType.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/Stream.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transfer.h"

namespace teraio {

struct Frame;
class Recipe;

// [Note: states of a block]
//   resident: memory holds the data.        leaving: memory holds the data and is being copied to a tier.
//   away:     a tier holds it.              coming:  memory is taken and being filled.
// A block with a recipe gives up its memory without a copy; then it is away without an extent, until the recipe is run.
// A leaving block that an op wants becomes resident again at once; its copy completes by itself and counts as
// valid if nothing wrote to the block meanwhile. Only a block that no op pins leaves. All changes happen under
// the engine's mutex on threads that run ops; I/O threads only report that a transfer is done.
enum class State : uint8_t { kResident, kLeaving, kAway, kComing };

// [Note: device memory]
// The CPU runs ahead of the device: that an op has ended says only that its work is issued. States, pins and counted
// memory follow the order in which the CPU issues ops; what must follow the device's order has an event or a stream:
//   leaving: the copy out starts after events on all streams that used the memory. The memory goes back to PyTorch's
//     allocator when a copy to the SSD is done. Of a copy to host memory the host needs to see nothing: the memory goes
//     back once the stream that it was taken on has been told to wait for `copied`.
//   coming: the memory is taken on the stream that will use it, and an event there comes before the first byte
//     (older work may still use the memory). From the SSD, a block is resident when its data is there. From host
//     memory, it is resident when the copy is issued: streams that use it wait for `ready` first.
//   going back: PyTorch's allocator gives memory to later work of the stream it was taken on, so it is told of all
//     other streams that used it.
struct DeviceMemory {
  at::DataPtr owner;
  c10::Stream home;                  // the stream it was taken on
  std::vector<c10::Stream> streams;  // those that used it
};

struct Block {
  uint64_t id = 0;
  size_t nbytes = 0;  // multiple of the page size; what counts against the budget
  size_t data_bytes = 0;  // without the padding: device memory may end there
  char* memory = nullptr;
  std::optional<DeviceMemory> device;  // what is behind `memory` where it is a device's
  std::optional<c10::Stream> first_stream;  // of the program, which takes the memory to be that stream's
  std::optional<c10::Event> ready;     // after the copy from host memory that fills it
  std::optional<c10::Event> copied;    // after its last copy to host memory
  char* address = nullptr;  // where its memory always is, once somebody has asked for its address
  State state = State::kResident;

  // The storage that owns the block, known from the first op that gets it as an operand, or that gives it and is
  // recorded by autograd. Weak: the storage owns the block, not the other way round.
  std::optional<c10::weak_intrusive_ptr<c10::StorageImpl>> storage;
  std::atomic<bool> guarded{false};  // its storage is known: from then on its guard is closed between ops
  bool was_guarded = false;          // when the last run ended; so it is from the beginning of the next one
  std::atomic<bool> exempt{false};   // an opaque tensor hides it, or a raw pointer into it is out: it never moves
  bool dead = false;      // its storage is gone; the block goes when nothing refers to it any more
  uint32_t pins = 0;      // ops and holders that need it in memory now
  uint32_t holders = 0;   // those of them that may write to it without an op
  std::atomic<Frame*> frame{nullptr};  // the frame that pinned it last; only that frame's thread relies on it

  // The copy in the spill space is valid while `copied_version` is `version`; every write by an op adds one.
  uint64_t version = 1;
  uint64_t copied_version = 0;
  std::optional<Extent> extent;
  TierKind tier = TierKind::kSpill;  // whose extent it is
  uint64_t checksum = 0;  // of the copy
  std::optional<Encoding> encoding;  // of the copy, where it is encoded
  // How to make the data again, see [Note: recipes]; the blocks that have this one as an operand of theirs.
  std::shared_ptr<const Recipe> recipe;
  uint64_t recipe_need = 0;  // bytes that this takes beside the op's operands
  std::vector<uint64_t> dependents;
  Transfer* transfer = nullptr;
  uint64_t transfer_version = 0;

  uint64_t last_use = 0;     // the engine's op counter
  int32_t trace_index = -1;  // the storage of the trace that it is in this iteration
  uint64_t published_iteration = 0;  // when its address was last asked for
  uint64_t lent_iteration = 0;       // when somebody got the address who may use it at any time
  std::string failure;       // why its last transfer failed
  std::string name;          // for messages; empty where nobody named it
  std::atomic<c10::ScalarType> dtype{c10::ScalarType::Undefined};  // of the tensors on it; see note_dtype()

  // Ops with tensors on it tell their dtype. One that is seen as two belongs to no codec.
  static constexpr c10::ScalarType kSeveralDtypes = c10::ScalarType::NumOptions;
  void note_dtype(c10::ScalarType seen) {
    auto known = c10::ScalarType::Undefined;
    if (dtype.load(std::memory_order_relaxed) == seen || dtype.compare_exchange_strong(known, seen)) return;
    if (known != seen) dtype = kSeveralDtypes;
  }

  bool clean() const { return extent.has_value() && copied_version == version; }
  bool dropped() const { return state == State::kAway && !extent; }
};

}  // namespace teraio
