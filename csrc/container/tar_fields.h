// Where the fields of a ustar header are (POSIX, "ustar Interchange Format"). For the writer and
// the reader of headers.
#ifndef PYCKPT_CONTAINER_TAR_FIELDS_H_
#define PYCKPT_CONTAINER_TAR_FIELDS_H_

#include <cstddef>

namespace pyckpt::ustar {

// In bytes, from the header's start.
struct Field {
  std::size_t offset;
  std::size_t nbytes;
};

inline constexpr Field kName{0, 100};
inline constexpr Field kMode{100, 8};
inline constexpr Field kUid{108, 8};
inline constexpr Field kGid{116, 8};
inline constexpr Field kSize{124, 12};
inline constexpr Field kMtime{136, 12};
inline constexpr Field kChecksum{148, 8};
inline constexpr std::size_t kTypeOffset = 156;
inline constexpr Field kLink{157, 100};
inline constexpr Field kMagic{257, 5};  // "ustar"; then NUL and the version "00", or GNU's blanks
inline constexpr Field kDevMajor{329, 8};
inline constexpr Field kDevMinor{337, 8};
inline constexpr Field kPrefix{345, 155};

}  // namespace pyckpt::ustar

#endif  // PYCKPT_CONTAINER_TAR_FIELDS_H_
