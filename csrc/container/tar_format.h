// The tar container: ustar headers, with pax records where ustar's fields are
// too small (POSIX.1-2001, "pax Interchange Format"). Pure layout, no I/O.
#ifndef PYCKPT_CONTAINER_TAR_FORMAT_H_
#define PYCKPT_CONTAINER_TAR_FORMAT_H_

#include <cstdint>
#include <string>

namespace pyckpt {

inline constexpr std::uint64_t kTarBlockNbytes = 512;
// tar programs read and write this much at once. A file is padded to a multiple of it.
inline constexpr std::uint64_t kTarRecordNbytes = 20 * kTarBlockNbytes;
// Two blocks of zeros end the archive.
inline constexpr std::uint64_t kTarEndNbytes = 2 * kTarBlockNbytes;

enum class TarType : char { kFile = '0', kDirectory = '5' };

struct TarEntry {
  std::string name;  // UTF-8, without leading "./" and without the "/" that ends a folder's name,
                     // which TarHeader() adds; empty for the root folder
  TarType type = TarType::kFile;
  std::uint32_t mode = 0644;
  std::uint64_t nbytes = 0;
  std::int64_t mtime = 0;  // seconds since the epoch; a negative time is written as 0
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

// The header blocks of one member: 512 bytes, or more if it needs pax records (a name of more
// than 100 bytes or not in ASCII, a size of 8 GiB or more, an id of 2 Mi or more). Large sizes and
// ids are also written in base-256, for readers that skip pax records.
std::string TarHeader(const TarEntry& entry);

}  // namespace pyckpt

#endif  // PYCKPT_CONTAINER_TAR_FORMAT_H_
