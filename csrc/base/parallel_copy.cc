#include "base/parallel_copy.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/parallel.h"

namespace pyckpt {
namespace {

// The size of every task except the last. A task is a piece of a large copy, or many small copies.
constexpr std::size_t kTaskNbytes = std::size_t{4} << 20;

}  // namespace

void ParallelCopy(const std::vector<Copy>& copies, int threads) {
  std::vector<Copy> pieces;
  std::vector<std::size_t> ends;  // of each task, in pieces
  std::size_t task_nbytes = 0;
  for (const Copy& copy : copies) {
    for (std::size_t at = 0; at < copy.from.nbytes;) {
      const std::size_t nbytes = std::min(kTaskNbytes - task_nbytes, copy.from.nbytes - at);
      pieces.push_back({copy.to + at, {copy.from.data + at, nbytes}});
      at += nbytes;
      task_nbytes += nbytes;
      if (task_nbytes == kTaskNbytes) {
        ends.push_back(pieces.size());
        task_nbytes = 0;
      }
    }
  }
  if (task_nbytes != 0) ends.push_back(pieces.size());

  Task task = [&pieces, &ends](std::size_t index) {
    for (std::size_t i = index == 0 ? 0 : ends[index - 1]; i < ends[index]; ++i) {
      std::memcpy(pieces[i].to, pieces[i].from.data, pieces[i].from.nbytes);
    }
  };
  RunParallel(
      ends.size(), threads, [&task] { return task; }, [] {});
}

}  // namespace pyckpt
