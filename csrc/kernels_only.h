// Calls of ops that go to the device's kernels at once.
// In: nothing. Out: the thread's dispatch keys changed for a scope. Must not know: which op is called.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace teraio {

// As a kernel finds them: it sees neither autograd nor modes.
inline c10::impl::ForceDispatchKeyGuard kernels_only() {
  return {c10::default_included_set - c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView),
          c10::default_excluded_set | c10::autograd_dispatch_keyset_with_ADInplaceOrView};
}

}  // namespace teraio
