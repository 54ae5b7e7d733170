#include "guard.h"

#include <atomic>
#include <utility>

// PyTorch 2.11 has no public call that clears the access flag. An explicit instantiation may name private
// members, which works on every version that has them.
namespace {
bool& access_flag(c10::StorageImpl& storage);
void refresh_checks(c10::StorageImpl& storage);
// Other threads look at deleter and context meanwhile, so only the pointer may change.
void*& pointer(at::DataPtr& data);

template <bool c10::StorageImpl::* Flag, void (c10::StorageImpl::* Refresh)()>
struct Reach {
  friend bool& access_flag(c10::StorageImpl& storage) { return storage.*Flag; }
  friend void refresh_checks(c10::StorageImpl& storage) { (storage.*Refresh)(); }
};
template struct Reach<&c10::StorageImpl::throw_on_immutable_data_ptr_,
                      &c10::StorageImpl::refresh_has_data_ptr_check>;

template <c10::detail::UniqueVoidPtr at::DataPtr::* Owner, void* c10::detail::UniqueVoidPtr::* Pointer>
struct ReachPointer {
  friend void*& pointer(at::DataPtr& data) { return data.*Owner.*Pointer; }
};
template struct ReachPointer<&at::DataPtr::ptr_, &c10::detail::UniqueVoidPtr::data_>;
}  // namespace

namespace teraio::guard {

namespace {

std::atomic<bool> is_quiet{false};

void set_flag(c10::StorageImpl& storage, bool raises) {
  access_flag(storage) = raises;
  refresh_checks(storage);
}

void set_memory(c10::StorageImpl& storage, void* memory) { pointer(storage._mutable_data_ptr_no_checks()) = memory; }

}  // namespace

void be_quiet(bool quiet) { is_quiet = quiet; }
bool quiet() { return is_quiet; }

void close(c10::StorageImpl& storage) {
  set_flag(storage, !is_quiet);
  if (is_quiet) set_memory(storage, nullptr);
}

void close_empty(c10::StorageImpl& storage) {
  close(storage);
  set_memory(storage, nullptr);
}

void open(c10::StorageImpl& storage, void* memory) {
  set_memory(storage, memory);
  set_flag(storage, false);
}

void refuse(c10::StorageImpl& storage, std::string message) {
  set_message(storage, std::move(message));
  set_memory(storage, nullptr);
  set_flag(storage, true);
}

void set_message(c10::StorageImpl& storage, std::string message) {
  storage.get_extra_meta().custom_data_ptr_error_msg_ = std::move(message);
}

}  // namespace teraio::guard
