// The members of a tar that anybody wrote: ustar, pax and GNU headers, and those
// of before POSIX (container/tar_format.h has what pyckpt itself writes).
#ifndef PYCKPT_READ_TAR_READER_H_
#define PYCKPT_READ_TAR_READER_H_

#include <cstdint>
#include <string>

#include "read/stream_image.h"

namespace pyckpt {

struct TarMember {
  std::string name;                 // as written: never to be used as a file's name unchecked
  char type = '0';                  // '5' a folder; see POSIX, "ustar Interchange Format"
  std::uint64_t header_offset = 0;  // of the first header that belongs to it
  Extent data;                      // none but for files
};

// Goes through a tar once, from header to header.
class TarReader {
 public:
  // image has to live as long.
  explicit TarReader(StreamImage* image) : image_(image) {}

  // The next member; false at the end of the tar. Throws Corrupt for a header
  // whose checksum is another or that makes no sense, for a member that is cut
  // off, and for a tar without an end.
  bool Next(TarMember* member);

  // Where the next header is, or behind the end's first block of zeros what
  // follows the tar.
  std::uint64_t offset() const { return offset_; }

 private:
  std::string ReadText(Extent data, std::uint64_t header_offset);

  StreamImage* image_;
  std::uint64_t offset_ = 0;
  bool ended_ = false;
};

}  // namespace pyckpt

#endif  // PYCKPT_READ_TAR_READER_H_
