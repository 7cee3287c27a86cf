// The records of any zip file, alone or inside a larger stream. APPNOTE.TXT explains the fields.
// container/zip_format.h has the layout that pyckpt writes.
#ifndef PYCKPT_READ_ZIP_READER_H_
#define PYCKPT_READ_ZIP_READER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "read/stream_image.h"

namespace pyckpt {

// One record, as the central directory describes it. Offsets are in bytes of the decompressed
// stream.
struct ZipEntry {
  std::string name;  // as written: check it before using it as a file name
  std::uint64_t nbytes = 0;
  std::uint64_t code_nbytes = 0;  // compressed; the same as nbytes if stored
  std::uint32_t crc = 0;
  bool stored = true;       // neither compressed nor encrypted
  bool deflated = false;    // compressed by deflate, and not encrypted
  std::uint64_t index = 0;  // its place in the central directory
  std::string chunk_index;  // the data of zip_chunk_index.h's field, or nothing
  std::uint64_t header_offset = 0;
  std::uint64_t end_offset = 0;  // where the next header or the directory begins
};

// The central directory of the zip file in extent, in the order of the headers. Throws Corrupt if
// it is broken, if a record is not inside extent, if two records have the same name, if a deflated
// record claims more bytes than its code can hold, or if the directory is larger than 256 MiB.
std::vector<ZipEntry> ReadZipDirectory(StreamImage* image, Extent extent);

// Where the data of each entry is, compressed or not. Reads the local headers. Throws Corrupt if a
// header does not match the directory, or if data overlaps the next record.
std::vector<Extent> LocateZipData(StreamImage* image, const std::vector<ZipEntry>& entries);

}  // namespace pyckpt

#endif  // PYCKPT_READ_ZIP_READER_H_
