// Recipes: what it takes to run an op again and get the same result to the last bit.
// In: an op that begins. Out: its result, again, at any later time. Must not know: plans, budgets, where data is.
#pragma once
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/DeviceType.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>
#include <cfenv>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "block.h"

namespace teraio {

// What ops on a device depend on beside their operands: settings of the thread and of PyTorch.
class Surroundings {
 public:
  explicit Surroundings(c10::DeviceType device);  // as they are now
  class Scope;

 private:
  // Changes what differs, but for the precision of products. After `then` was restored, what another thread has set
  // meanwhile stays.
  void restore(const Surroundings* then = nullptr) const;
  // Whether the process has these settings now.
  bool are_of_process() const;

  static constexpr size_t kMost = 24;
  c10::DeviceType device_;
  std::array<int64_t, kMost> values_{};  // in the order of a table in recipe.cpp
  std::array<at::Float32Precision, 2> products_{};
  caffe2::TypeMeta default_dtype_;
  std::fenv_t floating_point_;  // rounding, and whether denormal numbers are flushed
};

class ProductPrecision;

// [Note: turns]
// As they were then, for as long as it lives. Some settings are the process's: an op that needs others than there are
// runs again while no other does, but ops of the program on other threads find those of then. Who waits for what another
// thread makes again has no turn meanwhile, nor has an op whose operand is being made: it computes nothing yet.
class Surroundings::Scope {
 public:
  explicit Scope(const Surroundings& then);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  // This thread has no turn for as long as it lives.
  class Pause {
   public:
    Pause();
    ~Pause();  // may wait for others, who may need the engine's mutex
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;
  };

 private:
  void enter();
  void leave();

  static thread_local Scope* innermost_;
  Scope* const outer_ = innermost_;
  const Surroundings& then_;
  std::optional<Surroundings> here_;
  std::vector<std::unique_ptr<ProductPrecision>> precisions_;
  bool alone_ = false;
};

// [Note: recipes]
// An op may be run again in place of keeping its result if it is a pure function of its operands. That is so for what
// PyTorch tags as pointwise and not as random, and for a few others, products of matrices among them. The recipe keeps
// the op's arguments. Operands that are blocks are shared, for they leave and come back as others do: so the result must
// be made again before one of them is written to (Engine::settle). Small operands are copied. The result has its guard
// from the op's end on, as those have that autograd has recorded: nobody writes to it unseen.
// PyTorch's vectorised loops round a value differently in a vector and at the end of a thread's part of the work, so
// as many threads run the op as did at first; other settings are what they were then, too (Surroundings). Products and
// attention choose their kernels by whether gradients are wanted, of what they make on their way as well. So operands
// still say so, and autograd takes part if it did; what it records goes with the result. Under autocast the op casts its
// operands again, by itself: where it found one already cast, that might be of what the operand was before.
class Recipe {
 public:
  // Whether an op of this schema can have one.
  static bool possible(const c10::OperatorHandle& op);
  // The recipe of an op that begins; `block_of` gives the block of a storage, or nullptr. Null where an operand or a mode
  // of the thread makes the op more than a function of its arguments, or it draws random numbers.
  static std::unique_ptr<Recipe> of(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> arguments,
                                    Block* (*block_of)(c10::StorageImpl*));

  // Runs the op, observed like any other. Throws what the op throws.
  at::Tensor run() const;
  // How many operands the op casts itself, under autocast.
  uint32_t casts() const { return casts_; }
  // Ids of the blocks among its operands.
  const std::vector<uint64_t>& operands() const { return operands_; }
  // What it keeps of its small operands.
  const std::vector<at::Tensor>& copies() const { return copies_; }

 private:
  Recipe(const c10::OperatorHandle& op, c10::DeviceType device) : op_(op), surroundings_(device) {}

  c10::OperatorHandle op_;
  Surroundings surroundings_;
  c10::impl::LocalDispatchKeySet dispatch_ = c10::impl::tls_local_dispatch_key_set();  // with autocast, with autograd
  uint32_t casts_ = 0;
  std::vector<c10::IValue> arguments_;
  std::vector<uint64_t> operands_;
  std::vector<at::Tensor> copies_;
};

}  // namespace teraio
