#include "container/tar_format.h"

#include <algorithm>
#include <array>

#include "base/bytes.h"
#include "container/tar_fields.h"

namespace pyckpt {
namespace {

using namespace ustar;

using Block = std::array<char, kTarBlockNbytes>;

// Octal digits fill the field up to its last byte, which is NUL.
bool FitsOctal(Field field, std::uint64_t value) { return value >> (3 * (field.nbytes - 1)) == 0; }

void PutNumber(Block* block, Field field, std::uint64_t value) {
  char* at = block->data() + field.offset;
  if (FitsOctal(field, value)) {
    for (std::size_t i = field.nbytes - 1; i-- > 0; value >>= 3) {
      at[i] = static_cast<char>('0' + (value & 7));
    }
  } else {  // base-256: top bit set, then big endian
    for (std::size_t i = field.nbytes; i-- > 0; value >>= 8) {
      at[i] = static_cast<char>(value & 0xFF);
    }
    at[0] = static_cast<char>(0x80);
  }
}

std::string UstarBlock(const TarEntry& entry, char type) {
  Block block{};
  std::copy_n(entry.name.data(), std::min(entry.name.size(), kName.nbytes),
              block.data() + kName.offset);
  PutNumber(&block, kMode, entry.mode);
  PutNumber(&block, kUid, entry.uid);
  PutNumber(&block, kGid, entry.gid);
  PutNumber(&block, kSize, entry.nbytes);
  PutNumber(&block, kMtime, static_cast<std::uint64_t>(std::max<std::int64_t>(entry.mtime, 0)));
  PutNumber(&block, kDevMajor, 0);
  PutNumber(&block, kDevMinor, 0);
  block[kTypeOffset] = type;
  constexpr std::array<char, 8> kMagicAndVersion{'u', 's', 't', 'a', 'r', '\0', '0', '0'};
  std::copy(kMagicAndVersion.begin(), kMagicAndVersion.end(), block.data() + kMagic.offset);

  // While the sum is computed, its own field holds blanks. It is stored as six digits, NUL, blank.
  std::fill_n(block.data() + kChecksum.offset, kChecksum.nbytes, ' ');
  std::uint32_t sum = 0;
  for (const char c : block) sum += static_cast<std::uint8_t>(c);
  PutNumber(&block, {kChecksum.offset, kChecksum.nbytes - 1}, sum);
  block[kChecksum.offset + kChecksum.nbytes - 2] = '\0';
  return {block.data(), block.size()};
}

// "LENGTH KEY=VALUE\n", where LENGTH counts its own digits too.
std::string PaxRecord(const std::string& key, const std::string& value) {
  const std::string rest = " " + key + "=" + value + "\n";
  std::size_t nbytes = rest.size();
  while (nbytes != rest.size() + std::to_string(nbytes).size()) {
    nbytes = rest.size() + std::to_string(nbytes).size();
  }
  return std::to_string(nbytes) + rest;
}

bool IsAscii(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<std::uint8_t>(c) < 0x80; });
}

}  // namespace

std::string TarHeader(const TarEntry& entry) {
  TarEntry named = entry;
  if (named.type == TarType::kDirectory) named.name += '/';

  std::string records;
  if (named.name.size() > kName.nbytes || !IsAscii(named.name)) {
    records += PaxRecord("path", named.name);
  }
  if (!FitsOctal(kSize, entry.nbytes)) records += PaxRecord("size", std::to_string(entry.nbytes));
  if (!FitsOctal(kUid, entry.uid)) records += PaxRecord("uid", std::to_string(entry.uid));
  if (!FitsOctal(kGid, entry.gid)) records += PaxRecord("gid", std::to_string(entry.gid));

  std::string out;
  if (!records.empty()) {
    TarEntry pax;
    pax.name = "././@PaxHeader";
    pax.nbytes = records.size();
    out = UstarBlock(pax, 'x') + records;
    out.append(PaddingTo(out.size(), kTarBlockNbytes), '\0');
  }
  return out + UstarBlock(named, static_cast<char>(entry.type));
}

}  // namespace pyckpt
