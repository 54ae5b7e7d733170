// What PyTorch asks of every device: its current device and streams, and events.
//
// In: calls of c10::impl::VirtualGuardImpl. Out: the same for the streams and events of stream.h.
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>

#include <memory>

#include "allocator.h"
#include "stream.h"

namespace sim {
namespace {

using EventHandle = std::shared_ptr<Event>;

Event& event_of(void* handle) {
  TORCH_CHECK(handle != nullptr, "an event of the sim device that was never recorded");
  return **static_cast<EventHandle*>(handle);
}

void check_device(c10::Device d) {
  TORCH_CHECK(d.type() == kDeviceType && d.index() <= 0, "the sim device is sim:0 alone, not ", d);
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDeviceType; }
  c10::Device exchangeDevice(c10::Device d) const override {
    check_device(d);
    return device();
  }
  c10::Device getDevice() const override { return device(); }
  void setDevice(c10::Device d) const override { check_device(d); }
  void uncheckedSetDevice(c10::Device /*device*/) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  c10::Stream getStream(c10::Device /*device*/) const override { return current_stream().handle(); }
  c10::Stream getDefaultStream(c10::Device /*device*/) const override { return default_stream().handle(); }
  c10::Stream getStreamFromGlobalPool(c10::Device /*device*/, bool /*high_priority*/) const override {
    return pooled_stream().handle();
  }
  c10::Stream getNewStream(c10::Device /*device*/, int /*priority*/) const override { return new_stream().handle(); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return exchange_current_stream(stream_of(stream)).handle();
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return &stream_of(stream); }
  bool queryStream(const c10::Stream& stream) const override { return stream_of(stream).idle(); }
  void synchronizeStream(const c10::Stream& stream) const override { stream_of(stream).synchronize(); }
  void synchronizeDevice(const c10::DeviceIndex /*device*/) const override { synchronize_all(); }

  void record(void** handle, const c10::Stream& stream, const c10::DeviceIndex /*device*/,
              const c10::EventFlag /*flag*/) const override {
    if (*handle == nullptr) *handle = new EventHandle(std::make_shared<Event>());
    event_of(*handle).record(stream_of(stream));
  }
  void block(void* handle, const c10::Stream& stream) const override {
    if (handle != nullptr) event_of(handle).block(stream_of(stream));
  }
  bool queryEvent(void* handle) const override { return handle == nullptr || event_of(handle).query(); }
  void synchronizeEvent(void* handle) const override {
    if (handle != nullptr) event_of(handle).synchronize();
  }
  void destroyEvent(void* handle, const c10::DeviceIndex /*device*/) const noexcept override {
    delete static_cast<EventHandle*>(handle);
  }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex /*device*/) const override {
    return Event::elapsed_ms(event_of(from), event_of(to));
  }

  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    allocator().recordStream(data, stream);
  }
};

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

}  // namespace sim
