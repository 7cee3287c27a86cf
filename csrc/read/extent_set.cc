#include "read/extent_set.h"

#include <algorithm>
#include <iterator>

namespace pyckpt {

void ExtentSet::Add(Extent extent) {
  if (extent.nbytes == 0) return;
  std::uint64_t begin = extent.offset;
  std::uint64_t end = extent.end();
  auto next = ends_.upper_bound(begin);
  if (next != ends_.begin() && std::prev(next)->second >= begin) --next;
  while (next != ends_.end() && next->first <= end) {
    begin = std::min(begin, next->first);
    end = std::max(end, next->second);
    next = ends_.erase(next);
  }
  ends_.emplace_hint(next, begin, end);
}

std::vector<Extent> ExtentSet::Inside(Extent within) const {
  std::vector<Extent> found;
  auto next = ends_.upper_bound(within.offset);
  if (next != ends_.begin()) --next;
  for (; next != ends_.end() && next->first < within.end(); ++next) {
    const std::uint64_t begin = std::max(within.offset, next->first);
    const std::uint64_t end = std::min(within.end(), next->second);
    if (begin < end) found.push_back({begin, end - begin});
  }
  return found;
}

}  // namespace pyckpt
