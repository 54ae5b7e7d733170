// Collectives of torch.distributed: what they use stays in memory until their work is done.
// In: ops of c10d that begin and end. Out: blocks held meanwhile. Must not know: budgets, plans, which collectives
// there are.
//
// [Note: collectives]
// Such an op only begins the work. Threads or streams of the process group go on with its tensors, and with buffers that
// it made, after the op has ended, until the Work that it gives is done. Its schema doesn't say which of its tensors the
// work writes, so any of them may be.
#pragma once
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <atomic>
#include <cstddef>
#include <vector>

#include "engine.h"

namespace teraio::collectives {

bool is_one(const c10::FunctionSchema& schema);

// The op that begins one ends in this frame. What the frame has pinned stays until the Work among the results is done; if
// none is known, until the iteration ends.
void begun(Frame& frame, const std::vector<c10::IValue>& results);

// Whether any are under way.
extern std::atomic<size_t> under_way;
inline bool any() { return under_way.load(std::memory_order_relaxed) > 0; }
// Lets go of what those use that are done. Asks them every now and then only, unless `at_once`; may take the GIL.
void release_done(bool at_once);
// Of those that nobody can ask.
void end_iteration();
// The run ends. What is under way then keeps what it uses; the next run finds out when it is done.
void end_run();

}  // namespace teraio::collectives
