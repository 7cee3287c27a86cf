// Writes past the page cache: O_DIRECT. The bytes go from the caller's memory to the device. They
// are not copied by the kernel, and push nothing else out of its cache.
#ifndef PYCKPT_WRITE_DIRECT_IO_H_
#define PYCKPT_WRITE_DIRECT_IO_H_

#include <cstddef>

namespace pyckpt {

// Makes writes to an open, empty file direct. Returns the number of bytes, a power of two, of which
// addresses, offsets and lengths of writes must be multiples from now on; it is at most
// most_nbytes. Returns 0 and changes nothing if the file system does not take direct writes, wants
// more than that, or keeps files in memory.
//
// Not every file system tells whether it takes them. If the first write fails with EINVAL, it does
// not: call StopDirectIo and write again.
std::size_t StartDirectIo(int fd, std::size_t most_nbytes);

// Later writes go through the page cache. They need no alignment. Thread-safe.
void StopDirectIo(int fd);

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_DIRECT_IO_H_
