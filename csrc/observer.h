// The observer: sees every operator call of every thread, through one RecordFunction callback.
// In: PyTorch's dispatcher calling. Out: frames with operands for the engine, and where in the program they are.
// Must not know: memory, I/O, plans.
#pragma once
#include <cstdint>

namespace teraio::observer {

// With `meta`, storages of the meta device are blocks as well, from the first op that gets or makes them.
void enable(bool meta = false);
void disable();
// The engine has begun or ended to want results of ops; call it whenever it records or follows a plan, or no longer.
void mode_changed();

// This thread's ops belong to training (a forward or optimizer hook ran on it).
void mark_training_thread();
void enter_module(uint32_t module);
void exit_module();
void begin_optimizer();
void end_optimizer();
// Forgets what backward ops belong to which module; at the end of an iteration.
void end_iteration();

}  // namespace teraio::observer
