// Copies memory that its owner may free or move at any time.
#ifndef PYCKPT_BASE_GUARDED_COPY_H_
#define PYCKPT_BASE_GUARDED_COPY_H_

#include <cstddef>
#include <cstdint>

namespace pyckpt {

// Copies through the kernel, which finds out whether the memory is there. Takes about three times
// as long as memcpy. Thread-safe. Throws kSystem with EFAULT if some of the memory at from is not
// mapped. If the memory was freed and is used for something else, that is copied.
void GuardedCopy(std::uint8_t* to, const std::uint8_t* from, std::size_t nbytes);

// Whether the system allows it. Some containers forbid the system call.
bool CanGuardCopies();

}  // namespace pyckpt

#endif  // PYCKPT_BASE_GUARDED_COPY_H_
