#include "read/zip_reader.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/gzip/format.h"
#include "container/zip_chunk_index.h"

namespace pyckpt {
namespace {

constexpr std::uint32_t kLocalMagic = 0x04034B50;
constexpr std::uint32_t kEntryMagic = 0x02014B50;
constexpr std::uint32_t kEndMagic = 0x06054B50;
constexpr std::uint32_t kEnd64Magic = 0x06064B50;
constexpr std::uint32_t kLocator64Magic = 0x07064B50;
constexpr std::uint64_t kLocalNbytes = 30;
constexpr std::uint64_t kEntryNbytes = 46;
constexpr std::uint64_t kEndNbytes = 22;
constexpr std::uint64_t kEnd64Nbytes = 56;
constexpr std::uint64_t kLocator64Nbytes = 20;
constexpr std::uint64_t kMostCommentNbytes = 0xFFFF;
// The largest directory that is read: two million records with long names. There is a limit because
// the directory is kept in memory.
constexpr std::uint64_t kMostDirectoryNbytes = std::uint64_t{256} << 20;
constexpr std::uint32_t kIn64 = 0xFFFFFFFF;
constexpr std::uint16_t kCountIn64 = 0xFFFF;
constexpr std::uint16_t kExtra64 = 1;
constexpr std::uint16_t kEncrypted = 1;
constexpr std::uint16_t kDeflated = 8;
constexpr std::uint16_t kHasDescriptor = 8;

std::uint64_t Load(const std::uint8_t* p, int nbytes) {
  std::uint64_t value = 0;
  for (int i = 0; i < nbytes; ++i) value |= static_cast<std::uint64_t>(p[i]) << (8 * i);
  return value;
}
std::uint16_t Load16(const std::uint8_t* p) { return static_cast<std::uint16_t>(Load(p, 2)); }
std::uint32_t Load32(const std::uint8_t* p) { return static_cast<std::uint32_t>(Load(p, 4)); }

// What the end record and the zip64 end record say. offset counts from the zip file's start.
struct Directory {
  std::uint64_t offset = 0;
  std::uint64_t nbytes = 0;
  std::uint64_t entries = 0;
};

[[noreturn]] void Broken(const std::string& what, std::uint64_t at) {
  throw Error::Corrupt("the zip file is broken: " + what, at);
}

void RequireIn(StreamImage* image, Extent extent) {
  if (!image->Require(extent)) Broken("it is cut off", extent.offset);
}

Directory FindDirectory(StreamImage* image, Extent zip) {
  if (zip.nbytes < kEndNbytes) Broken("it is too short", zip.offset);
  const std::uint64_t tail =
      std::min(zip.nbytes, kEndNbytes + kMostCommentNbytes + kLocator64Nbytes);
  const std::uint64_t tail_offset = zip.offset + zip.nbytes - tail;
  RequireIn(image, {tail_offset, tail});
  const std::uint8_t* bytes = image->Address(tail_offset);
  std::uint64_t end = tail - kEndNbytes + 1;
  do {
    if (end-- == 0) Broken("it has no central directory", tail_offset);
  } while (Load32(bytes + end) != kEndMagic || Load16(bytes + end + 20) != tail - end - kEndNbytes);
  Directory found{Load32(bytes + end + 16), Load32(bytes + end + 12), Load16(bytes + end + 10)};
  const std::uint64_t end_offset = zip.nbytes - tail + end;  // in the zip file
  std::uint64_t limit = end_offset;
  if (end >= kLocator64Nbytes && Load32(bytes + end - kLocator64Nbytes) == kLocator64Magic) {
    const std::uint64_t at = LoadLe64(bytes + end - kLocator64Nbytes + 8);
    const std::uint64_t locator = end_offset - kLocator64Nbytes;
    if (at > locator || locator - at < kEnd64Nbytes) {
      Broken("its zip64 end record is not inside the file", zip.offset + locator);
    }
    RequireIn(image, {zip.offset + at, kEnd64Nbytes});
    const std::uint8_t* end64 = image->Address(zip.offset + at);
    if (Load32(end64) != kEnd64Magic) Broken("it has no zip64 end record", zip.offset + at);
    const Directory in64{LoadLe64(end64 + 48), LoadLe64(end64 + 40), LoadLe64(end64 + 32)};
    if ((found.offset != kIn64 && found.offset != in64.offset) ||
        (found.nbytes != kIn64 && found.nbytes != in64.nbytes) ||
        (found.entries != kCountIn64 && found.entries != in64.entries)) {
      Broken("its two end records differ", zip.offset + at);
    }
    found = in64;
    limit = at;
  }
  if (found.offset > limit || found.nbytes != limit - found.offset ||
      found.entries > found.nbytes / kEntryNbytes) {
    Broken("its central directory does not end where the end record begins",
           zip.offset + end_offset);
  }
  if (found.nbytes > kMostDirectoryNbytes) {
    Broken("its central directory is absurdly large", zip.offset + end_offset);
  }
  return found;
}

// Sizes and offsets that are too large for the entry's own fields are in its zip64 extra field.
// Replaces them by these. Takes the chunk index too.
void ReadExtras(const std::uint8_t* extra, std::size_t nbytes, ZipEntry* entry, std::uint64_t at) {
  for (std::size_t i = 0; i + 4 <= nbytes;) {
    const std::uint16_t id = Load16(extra + i);
    std::size_t left = Load16(extra + i + 2);
    const std::uint8_t* p = extra + i + 4;
    if (left > nbytes - i - 4) Broken("an extra field is cut off", at);
    i += 4 + left;
    if (id == kZipChunkIndexId) entry->chunk_index.assign(p, p + left);
    if (id != kExtra64) continue;
    for (std::uint64_t* value : {&entry->nbytes, &entry->code_nbytes, &entry->header_offset}) {
      if (*value != kIn64) continue;
      if (left < 8) Broken("a zip64 extra field is too short", at);
      *value = LoadLe64(p);
      p += 8;
      left -= 8;
    }
  }
}

}  // namespace

std::vector<ZipEntry> ReadZipDirectory(StreamImage* image, Extent zip) {
  const Directory directory = FindDirectory(image, zip);
  const std::uint64_t begin = zip.offset + directory.offset;
  RequireIn(image, {begin, directory.nbytes});
  std::vector<ZipEntry> entries;
  entries.reserve(directory.entries);
  std::set<std::string> names;
  const std::uint8_t* p = image->Address(begin);
  std::uint64_t left = directory.nbytes;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    const std::uint64_t at = begin + directory.nbytes - left;
    if (left < kEntryNbytes || Load32(p) != kEntryMagic) Broken("a directory entry is missing", at);
    const std::uint64_t name_nbytes = Load16(p + 28);
    const std::uint64_t extra_nbytes = Load16(p + 30);
    const std::uint64_t entry_nbytes = kEntryNbytes + name_nbytes + extra_nbytes + Load16(p + 32);
    if (entry_nbytes > left) Broken("a directory entry is cut off", at);
    ZipEntry entry;
    entry.index = i;
    const std::uint8_t* name = p + kEntryNbytes;
    entry.name.assign(name, name + name_nbytes);
    entry.crc = Load32(p + 16);
    entry.code_nbytes = Load32(p + 20);
    entry.nbytes = Load32(p + 24);
    entry.header_offset = Load32(p + 42);
    ReadExtras(name + name_nbytes, extra_nbytes, &entry, at);
    const bool is_open = (Load16(p + 8) & kEncrypted) == 0;
    entry.stored = Load16(p + 10) == 0 && is_open;
    entry.deflated = Load16(p + 10) == kDeflated && is_open;
    if (entry.stored && entry.code_nbytes != entry.nbytes)
      Broken("the two sizes of a stored record differ", at);
    if (entry.deflated && entry.nbytes / gzip::kMostExpansion > entry.code_nbytes) {
      Broken("record " + entry.name + " claims more bytes than its code can hold", at);
    }
    if (entry.header_offset > directory.offset ||
        entry.code_nbytes > directory.offset - entry.header_offset) {
      Broken("record " + entry.name + " is not inside the file", at);
    }
    if (!names.insert(entry.name).second) Broken("record " + entry.name + " appears twice", at);
    entry.header_offset += zip.offset;
    entries.push_back(std::move(entry));
    p += entry_nbytes;
    left -= entry_nbytes;
  }
  if (left != 0) Broken("bytes follow the last entry of its central directory", begin);
  std::sort(entries.begin(), entries.end(),
            [](const ZipEntry& a, const ZipEntry& b) { return a.header_offset < b.header_offset; });
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].end_offset = i + 1 < entries.size() ? entries[i + 1].header_offset : begin;
  }
  return entries;
}

std::vector<Extent> LocateZipData(StreamImage* image, const std::vector<ZipEntry>& entries) {
  std::vector<Extent> headers;
  headers.reserve(entries.size());
  for (const ZipEntry& entry : entries) {
    const std::uint64_t nbytes = kLocalNbytes + entry.name.size();
    if (entry.end_offset - entry.header_offset < nbytes) {
      Broken("record " + entry.name + " overlaps the next", entry.header_offset);
    }
    headers.push_back({entry.header_offset, nbytes});
  }
  image->RequireAll(headers);
  std::vector<Extent> places;
  places.reserve(entries.size());
  for (const ZipEntry& entry : entries) {
    const std::uint8_t* header = image->Address(entry.header_offset);
    if (Load32(header) != kLocalMagic || Load16(header + 26) != entry.name.size() ||
        std::memcmp(header + kLocalNbytes, entry.name.data(), entry.name.size()) != 0) {
      Broken("the header of record " + entry.name + " does not match the directory",
             entry.header_offset);
    }
    const std::uint64_t offset =
        entry.header_offset + kLocalNbytes + entry.name.size() + Load16(header + 28);
    if (offset > entry.end_offset || entry.code_nbytes > entry.end_offset - offset) {
      Broken("record " + entry.name + " overlaps the next", entry.header_offset);
    }
    // With a descriptor, the header may lack the checksum.
    if ((Load16(header + 6) & kHasDescriptor) == 0 && Load32(header + 14) != entry.crc) {
      Broken("the two checksums of record " + entry.name + " differ", entry.header_offset);
    }
    places.push_back({offset, entry.code_nbytes});
  }
  return places;
}

}  // namespace pyckpt
