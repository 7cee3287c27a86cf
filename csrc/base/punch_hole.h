// Files that give the room of some of their bytes back.
#ifndef PYCKPT_BASE_PUNCH_HOLE_H_
#define PYCKPT_BASE_PUNCH_HOLE_H_

#include <cstdint>

namespace pyckpt {

// Gives back the disk's room, or the memory of a file in memory, that these bytes of an open file
// take. They read as zeros then, and the file stays as long as it is. Does nothing if the file
// system cannot do it.
void PunchHole(int fd, std::uint64_t offset, std::uint64_t nbytes);

}  // namespace pyckpt

#endif  // PYCKPT_BASE_PUNCH_HOLE_H_
