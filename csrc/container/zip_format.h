// The zip container of torch.save (torch's PyTorchStreamWriter on miniz; APPNOTE.TXT explains the
// fields). Pure layout, no I/O.
//
// Stored records are exactly as torch lays them out: data is aligned to 64 bytes, the checksum
// follows the data. torch.load(mmap=True) computes record offsets from these rules instead of
// reading them, so every byte must be where torch puts it. torch writes no deflated records, but
// reads them. Theirs are not aligned.
#ifndef PYCKPT_CONTAINER_ZIP_FORMAT_H_
#define PYCKPT_CONTAINER_ZIP_FORMAT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace pyckpt {

// The value of the record .storage_alignment.
inline constexpr std::uint64_t kZipAlignment = 64;

// One record and its place. Offsets count from the start of the zip file.
struct ZipRecord {
  std::string name;
  std::uint64_t nbytes = 0;
  std::uint64_t header_offset = 0;
  std::uint64_t data_offset = 0;
  bool deflated = false;
  std::uint64_t code_nbytes = 0;  // in the file; the same as nbytes if stored
  std::string chunk_index;        // a field of zip_chunk_index.h, or nothing

  // Where the next record's header starts.
  std::uint64_t end_offset() const;
};

// The stored record whose local header starts at header_offset.
ZipRecord PlaceZipRecord(std::string name, std::uint64_t nbytes, std::uint64_t header_offset);

// The deflated record whose local header starts at header_offset, without its code_nbytes and
// chunk_index. Set them when they are known: only the descriptor and the directory need them.
ZipRecord PlaceDeflatedRecord(std::string name, std::uint64_t nbytes, std::uint64_t header_offset);

// The bytes from header_offset up to data_offset.
std::string ZipLocalHeader(const ZipRecord& record);

// The descriptor that follows the data: 16 bytes, 24 in zip64, none if the record is empty.
std::uint64_t ZipDescriptorNbytes(const ZipRecord& record);
std::string ZipDescriptor(const ZipRecord& record, std::uint32_t crc);

// Everything after the last record: central directory, zip64 end record and locator, end record.
// crcs has the checksum of each record. The size does not depend on crcs.
std::uint64_t ZipDirectoryNbytes(const std::vector<ZipRecord>& records);
std::string ZipDirectory(const std::vector<ZipRecord>& records,
                         const std::vector<std::uint32_t>& crcs);

}  // namespace pyckpt

#endif  // PYCKPT_CONTAINER_ZIP_FORMAT_H_
