// A set of bytes of a stream, as extents.
#ifndef PYCKPT_READ_EXTENT_SET_H_
#define PYCKPT_READ_EXTENT_SET_H_

#include <cstdint>
#include <map>
#include <vector>

#include "read/extent.h"

namespace pyckpt {

// Extents that touch become one, so bytes that are added in order take no memory. Not thread-safe.
class ExtentSet {
 public:
  void Add(Extent extent);

  // The parts of within that are in the set, in order.
  std::vector<Extent> Inside(Extent within) const;

 private:
  std::map<std::uint64_t, std::uint64_t> ends_;  // by where an extent begins
};

}  // namespace pyckpt

#endif  // PYCKPT_READ_EXTENT_SET_H_
