// The records of a zip file that anybody wrote, inside a larger stream or alone
// (APPNOTE.TXT for the fields; container/zip_format.h has what pyckpt itself writes).
#ifndef PYCKPT_READ_ZIP_READER_H_
#define PYCKPT_READ_ZIP_READER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "read/stream_image.h"

namespace pyckpt {

// One record, as the central directory has it. Offsets are the stream's.
struct ZipEntry {
  std::string name;  // as written: never to be used as a file's name unchecked
  std::uint64_t nbytes = 0;
  std::uint64_t code_nbytes = 0;  // as the record lies there; the same when it is stored
  std::uint32_t crc = 0;
  bool stored = true;     // neither compressed nor encrypted
  bool deflated = false;  // compressed by deflate, and not encrypted
  std::uint64_t header_offset = 0;
  std::uint64_t end_offset = 0;  // where the next header is, or the directory
};

// The central directory of the zip file in extent, in the order of the headers.
// Throws Corrupt where it is broken: entries that lie outside, overlap, or bear
// the same name; and where it is larger than any program's.
std::vector<ZipEntry> ReadZipDirectory(StreamImage* image, Extent extent);

// Where the data of each entry is, compressed if it is so, from the local headers. Throws Corrupt
// where a header contradicts the directory, or the data would reach into the next record.
std::vector<Extent> LocateZipData(StreamImage* image, const std::vector<ZipEntry>& entries);

}  // namespace pyckpt

#endif  // PYCKPT_READ_ZIP_READER_H_
