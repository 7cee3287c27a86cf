#include "container/zip_format.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"

namespace pyckpt {
namespace {

constexpr std::uint32_t kLocalSignature = 0x04034B50;
constexpr std::uint32_t kDescriptorSignature = 0x08074B50;
constexpr std::uint32_t kDirectorySignature = 0x02014B50;
constexpr std::uint32_t kZip64EndSignature = 0x06064B50;
constexpr std::uint32_t kZip64LocatorSignature = 0x07064B50;
constexpr std::uint32_t kEndSignature = 0x06054B50;

constexpr std::uint64_t kLocalHeaderNbytes = 30;
constexpr std::uint64_t kDirectoryEntryNbytes = 46;
constexpr std::uint64_t kEndNbytes = 56 + 20 + 22;  // zip64 end, locator, end
constexpr std::uint64_t kExtraHeaderNbytes = 4;     // id and length
constexpr std::uint16_t kZip64Id = 0x0001;
constexpr std::uint16_t kPaddingId = 0x4246;  // "FB"
constexpr char kPaddingByte = 'Z';

// A value of this size or more is written to a zip64 field. The usual field then holds this value.
constexpr std::uint32_t kMax32 = 0xFFFFFFFF;
constexpr std::uint16_t kMax16 = 0xFFFF;

constexpr std::uint16_t kFlagUtf8 = 0x0800;
constexpr std::uint16_t kFlagDescriptor = 0x0008;
constexpr std::uint16_t kZip64MadeBy = 0x031E;  // Unix, version 3.0
constexpr std::uint16_t kZip64Needed = 45;
constexpr std::uint16_t kDeflateNeeded = 20;
constexpr std::uint16_t kDeflated = 8;

// The header of a deflated record is written before the size of its code is known. Code is at most
// this much longer than the data.
std::uint64_t MostCodeNbytes(std::uint64_t nbytes) { return nbytes + nbytes / 1024 + 1024; }

bool LargeData(const ZipRecord& r) {
  return (r.deflated ? MostCodeNbytes(r.nbytes) : r.nbytes) >= kMax32;
}
bool FarHeader(const ZipRecord& r) { return r.header_offset >= kMax32; }

// Whether the descriptor has fields of 64 bits. Readers take that from the local header, where
// torch writes the offset too.
bool IsZip64(const ZipRecord& r) { return LargeData(r) || (FarHeader(r) && !r.deflated); }

std::uint32_t Clamp32(std::uint64_t v) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(v, kMax32));
}
std::uint16_t Clamp16(std::uint64_t v) {
  return static_cast<std::uint16_t>(std::min<std::uint64_t>(v, kMax16));
}

std::uint16_t Flags(const ZipRecord& r) {
  return r.nbytes == 0 ? kFlagUtf8 : kFlagUtf8 | kFlagDescriptor;
}

std::string Zip64Extra(const ZipRecord& r, bool with_offset) {
  if (!LargeData(r) && !with_offset) return {};
  std::string out;
  AppendLe16(&out, kZip64Id);
  AppendLe16(&out, static_cast<std::uint16_t>((LargeData(r) ? 16 : 0) + (with_offset ? 8 : 0)));
  if (LargeData(r)) {
    AppendLe64(&out, r.nbytes);  // uncompressed
    AppendLe64(&out, r.code_nbytes);
  }
  if (with_offset) AppendLe64(&out, r.header_offset);
  return out;
}

// The extra fields of the local header, without padding, and of the directory.
std::string LocalZip64(const ZipRecord& r) {
  return Zip64Extra(r, /*with_offset=*/FarHeader(r) && !r.deflated);
}
std::string DirectoryExtra(const ZipRecord& r) {
  return Zip64Extra(r, /*with_offset=*/FarHeader(r)) + r.chunk_index;
}

// torch leaves the version out.
std::uint16_t VersionNeeded(const ZipRecord& r) {
  if (!r.deflated) return 0;
  return LargeData(r) || FarHeader(r) ? kZip64Needed : kDeflateNeeded;
}

}  // namespace

std::uint64_t ZipRecord::end_offset() const {
  return data_offset + code_nbytes + ZipDescriptorNbytes(*this);
}

ZipRecord PlaceZipRecord(std::string name, std::uint64_t nbytes, std::uint64_t header_offset) {
  ZipRecord r;
  r.name = std::move(name);
  r.nbytes = r.code_nbytes = nbytes;
  r.header_offset = header_offset;
  const std::uint64_t unpadded = header_offset + kLocalHeaderNbytes + r.name.size() +
                                 LocalZip64(r).size() + kExtraHeaderNbytes;
  r.data_offset = unpadded + PaddingTo(unpadded, kZipAlignment);
  return r;
}

ZipRecord PlaceDeflatedRecord(std::string name, std::uint64_t nbytes, std::uint64_t header_offset) {
  ZipRecord r;
  r.name = std::move(name);
  r.nbytes = nbytes;
  r.header_offset = header_offset;
  r.deflated = true;
  r.data_offset = header_offset + kLocalHeaderNbytes + r.name.size() + LocalZip64(r).size();
  return r;
}

std::string ZipLocalHeader(const ZipRecord& r) {
  const std::uint64_t extra_nbytes =
      r.data_offset - r.header_offset - kLocalHeaderNbytes - r.name.size();
  std::string out;
  AppendLe32(&out, kLocalSignature);
  AppendLe16(&out, VersionNeeded(r));
  AppendLe16(&out, Flags(r));
  AppendLe16(&out, r.deflated ? kDeflated : 0);
  AppendLe32(&out, 0);  // time and date
  AppendLe32(&out, 0);  // crc: in the descriptor
  // These tell a streaming reader that the sizes are in zip64.
  AppendLe32(&out, LargeData(r) ? kMax32 : 0);
  AppendLe32(&out, LargeData(r) ? kMax32 : 0);
  AppendLe16(&out, static_cast<std::uint16_t>(r.name.size()));
  AppendLe16(&out, static_cast<std::uint16_t>(extra_nbytes));
  out += r.name;
  const std::string zip64 = LocalZip64(r);
  out += zip64;
  if (extra_nbytes == zip64.size()) return out;
  const std::uint64_t padding = extra_nbytes - zip64.size() - kExtraHeaderNbytes;
  AppendLe16(&out, kPaddingId);
  AppendLe16(&out, static_cast<std::uint16_t>(padding));
  out.append(padding, kPaddingByte);
  return out;
}

std::uint64_t ZipDescriptorNbytes(const ZipRecord& r) {
  if (r.nbytes == 0) return 0;
  return IsZip64(r) ? 24 : 16;
}

std::string ZipDescriptor(const ZipRecord& r, std::uint32_t crc) {
  std::string out;
  if (r.nbytes == 0) return out;
  const int width = IsZip64(r) ? 8 : 4;
  AppendLe32(&out, kDescriptorSignature);
  AppendLe32(&out, crc);
  AppendLe(&out, r.code_nbytes, width);
  AppendLe(&out, r.nbytes, width);
  return out;
}

std::uint64_t ZipDirectoryNbytes(const std::vector<ZipRecord>& records) {
  std::uint64_t nbytes = kEndNbytes;
  for (const ZipRecord& r : records) {
    nbytes += kDirectoryEntryNbytes + r.name.size() + DirectoryExtra(r).size();
  }
  return nbytes;
}

std::string ZipDirectory(const std::vector<ZipRecord>& records,
                         const std::vector<std::uint32_t>& crcs) {
  const std::uint64_t start = records.empty() ? 0 : records.back().end_offset();
  std::string out;
  for (std::size_t i = 0; i < records.size(); ++i) {
    const ZipRecord& r = records[i];
    const std::string extra = DirectoryExtra(r);
    AppendLe32(&out, kDirectorySignature);
    AppendLe16(&out, 0);  // made by
    AppendLe16(&out, VersionNeeded(r));
    AppendLe16(&out, Flags(r));
    AppendLe16(&out, r.deflated ? kDeflated : 0);
    AppendLe32(&out, 0);  // time and date
    AppendLe32(&out, crcs[i]);
    AppendLe32(&out, LargeData(r) ? kMax32 : Clamp32(r.code_nbytes));
    AppendLe32(&out, LargeData(r) ? kMax32 : Clamp32(r.nbytes));
    AppendLe16(&out, static_cast<std::uint16_t>(r.name.size()));
    AppendLe16(&out, static_cast<std::uint16_t>(extra.size()));
    AppendLe16(&out, 0);  // comment
    AppendLe16(&out, 0);  // disk
    AppendLe16(&out, 0);  // internal attributes
    AppendLe32(&out, 0);  // external attributes
    AppendLe32(&out, FarHeader(r) ? kMax32 : Clamp32(r.header_offset));
    out += r.name;
    out += extra;
  }
  const std::uint64_t directory_nbytes = out.size();
  const std::uint64_t zip64_end = start + directory_nbytes;

  AppendLe32(&out, kZip64EndSignature);
  AppendLe64(&out, 56 - 12);  // what follows in this record
  AppendLe16(&out, kZip64MadeBy);
  AppendLe16(&out, kZip64Needed);
  AppendLe32(&out, 0);  // this disk
  AppendLe32(&out, 0);  // directory's disk
  AppendLe64(&out, records.size());
  AppendLe64(&out, records.size());
  AppendLe64(&out, directory_nbytes);
  AppendLe64(&out, start);

  AppendLe32(&out, kZip64LocatorSignature);
  AppendLe32(&out, 0);
  AppendLe64(&out, zip64_end);
  AppendLe32(&out, 1);  // disks

  AppendLe32(&out, kEndSignature);
  AppendLe16(&out, 0);
  AppendLe16(&out, 0);
  AppendLe16(&out, Clamp16(records.size()));
  AppendLe16(&out, Clamp16(records.size()));
  AppendLe32(&out, Clamp32(directory_nbytes));
  AppendLe32(&out, Clamp32(start));
  AppendLe16(&out, 0);
  return out;
}

}  // namespace pyckpt
