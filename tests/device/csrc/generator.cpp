#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/util/Exception.h>

#include <mutex>

#include "device.h"

namespace sim {
namespace {

struct Generator final : at::CPUGeneratorImpl {
  Generator() {
    device_ = sim::device();
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }
};

}  // namespace

const at::Generator& default_generator() {
  static const auto* made = new at::Generator(new_generator());
  return *made;
}

at::Generator new_generator() { return at::make_generator<Generator>(); }

uint64_t draw_seed(const std::optional<at::Generator>& generator) {
  at::Generator source = generator && generator->defined() ? *generator : default_generator();
  TORCH_CHECK(source.device().type() == kDeviceType, "expected a generator of the sim device, not of ", source.device());
  const std::lock_guard<std::mutex> lock(source.mutex());
  return static_cast<at::CPUGeneratorImpl*>(source.unsafeGetGeneratorImpl())->random64();
}

}  // namespace sim
