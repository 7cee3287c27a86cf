// Copies host memory on several threads.
#ifndef PYCKPT_BASE_PARALLEL_COPY_H_
#define PYCKPT_BASE_PARALLEL_COPY_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

struct Copy {
  std::uint8_t* to = nullptr;
  Span from;
};

// Makes all copies and returns when they are done. Several threads share a large copy.
void ParallelCopy(const std::vector<Copy>& copies, int threads);

}  // namespace pyckpt

#endif  // PYCKPT_BASE_PARALLEL_COPY_H_
