// The members of any tar: ustar, pax and GNU headers, and headers from before POSIX.
// container/tar_format.h has the headers that pyckpt writes.
#ifndef PYCKPT_READ_TAR_READER_H_
#define PYCKPT_READ_TAR_READER_H_

#include <cstdint>
#include <string>

#include "read/stream_image.h"

namespace pyckpt {

// Offsets are in bytes of the decompressed stream.
struct TarMember {
  std::string name;                 // as written: check it before using it as a file name
  char type = '0';                  // a code of POSIX, see TarReader::Next()
  std::uint64_t header_offset = 0;  // of the first header that belongs to it
  Extent data;                      // empty except for files
  std::string link;                 // the name that a link leads to, as written
};

// Reads a tar once, from header to header. Not thread-safe.
class TarReader {
 public:
  // image must outlive the reader.
  explicit TarReader(StreamImage* image) : image_(image) {}

  // Sets member to the next one, and gives back the memory of everything before it. Returns false
  // at the end of the tar. Throws Corrupt if a header is invalid or its checksum does not match, if
  // a member is cut off, or if no block of zeros ends the tar.
  //
  // The type is '0' for a file, '1' for a hard link, '2' for a symbolic link, '3', '4' and '6' for
  // devices and pipes, '5' for a folder, 'S' for a sparse file and 'M' for a part of a file that
  // began on another volume. Types that vendors have added are files, as POSIX demands.
  bool Next(TarMember* member);

  // Where the next header is. After the end: behind the first block of zeros.
  std::uint64_t offset() const { return offset_; }

 private:
  std::string ReadText(Extent data, std::uint64_t header_offset);
  // at is the first header of a sparse file. Returns where its data begins.
  std::uint64_t SkipSparseHeaders(std::uint64_t at);

  StreamImage* image_;
  std::uint64_t offset_ = 0;
  bool ended_ = false;
};

}  // namespace pyckpt

#endif  // PYCKPT_READ_TAR_READER_H_
