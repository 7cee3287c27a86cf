#include "read/tar_reader.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "container/tar_fields.h"
#include "container/tar_format.h"

namespace pyckpt {
namespace {

using namespace ustar;

constexpr std::size_t kBinary = 0x80;

// The largest size of a long name or of pax records, in bytes. Larger ones are refused as an
// attack.
constexpr std::uint64_t kMostTextNbytes = std::uint64_t{1} << 20;

std::string Text(const std::uint8_t* header, Field field) {
  const auto* begin = header + field.offset;
  return {begin, std::find(begin, begin + field.nbytes, 0)};
}

// A number in octal digits, after any blanks and before a blank, NUL or the field's end, or a
// number in base-256.
std::uint64_t Number(const std::uint8_t* header, Field field, std::uint64_t at) {
  const std::uint8_t* p = header + field.offset;
  const std::uint8_t* end = p + field.nbytes;
  std::uint64_t value = 0;
  if ((*p & kBinary) != 0) {
    for (; p != end; ++p) {
      const std::uint64_t digit = value == 0 && p == header + field.offset ? *p & 0x7FU : *p;
      if (value >> 55 != 0) throw Error::Corrupt("a number in a tar header is too large", at);
      value = value << 8 | digit;
    }
    return value;
  }
  while (p != end && *p == ' ') ++p;
  for (; p != end && *p >= '0' && *p <= '7'; ++p) {
    value = value << 3 | static_cast<std::uint64_t>(*p - '0');
  }
  if (p != end && *p != ' ' && *p != 0) {
    throw Error::Corrupt("a number in a tar header is not octal", at);
  }
  return value;
}

bool ChecksumFits(const std::uint8_t* header, std::uint64_t at) {
  std::uint64_t bytes = ' ' * kChecksum.nbytes;
  auto chars = static_cast<std::int64_t>(bytes);  // some old programs summed signed chars
  for (std::size_t i = 0; i < kTarBlockNbytes; ++i) {
    if (i >= kChecksum.offset && i < kChecksum.offset + kChecksum.nbytes) continue;
    bytes += header[i];
    chars += static_cast<std::int8_t>(header[i]);
  }
  const std::uint64_t stored = Number(header, kChecksum, at);
  return stored == bytes || static_cast<std::int64_t>(stored) == chars;
}

std::optional<std::uint64_t> Decimal(const std::string& digits) {
  constexpr std::size_t kMostDigits = 18;
  if (digits.empty() || digits.size() > kMostDigits ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  return std::stoull(digits);
}

// What pax records or a GNU long name say about the next member.
struct Overrides {
  std::optional<std::string> name;
  std::optional<std::uint64_t> nbytes;
};

// Records of the form "20 path=some/name\n", where 20 is the record's length.
void ReadPaxRecords(const std::string& text, std::uint64_t at, Overrides* overrides) {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t blank = text.find(' ', begin);
    const auto nbytes =
        blank == std::string::npos ? std::nullopt : Decimal(text.substr(begin, blank - begin));
    const std::size_t equals = text.find('=', begin);
    if (!nbytes || *nbytes > text.size() - begin || equals == std::string::npos || equals < blank ||
        equals + 1 >= begin + *nbytes || text[begin + *nbytes - 1] != '\n') {
      throw Error::Corrupt("a pax header is broken", at);
    }
    const std::string key = text.substr(blank + 1, equals - blank - 1);
    const std::string value = text.substr(equals + 1, begin + *nbytes - 1 - (equals + 1));
    if (key == "path") overrides->name = value;
    if (key == "size") {
      overrides->nbytes = Decimal(value);
      if (!overrides->nbytes) throw Error::Corrupt("the size in a pax header is invalid", at);
    }
    if (key.rfind("GNU.sparse", 0) == 0) {
      throw Error::Corrupt("a member is a sparse file, which is not supported", at);
    }
    begin += *nbytes;
  }
}

bool HasData(char type) {
  return type == '0' || type == 0 || type == '7' || type == 'x' || type == 'g' || type == 'L' ||
         type == 'K';
}

}  // namespace

bool TarReader::Next(TarMember* member) {
  Overrides overrides;
  std::optional<std::uint64_t> first_header;
  while (!ended_) {
    image_->Skip(offset_);
    if (!image_->Require({offset_, kTarBlockNbytes})) {
      throw Error::Corrupt(offset_ == 0 ? "it is too short for a tar" : "the tar has no end mark",
                           offset_);
    }
    const std::uint64_t at = offset_;
    const std::uint8_t* header = image_->Address(at);
    if (std::all_of(header, header + kTarBlockNbytes, [](std::uint8_t b) { return b == 0; })) {
      if (at == 0) throw Error::Corrupt("it begins with zeros", 0);
      if (first_header) throw Error::Corrupt("a tar header is missing", at);
      ended_ = true;
      offset_ += kTarBlockNbytes;
      break;
    }
    if (!ChecksumFits(header, at)) {
      throw Error::Corrupt("a tar header's checksum does not match", at);
    }
    char type = static_cast<char>(header[kTypeOffset]);
    const bool is_ustar = Text(header, kMagic) == "ustar";
    std::string name = Text(header, kName);
    // GNU's format has other fields in the place of the prefix.
    const bool is_gnu = is_ustar && header[kMagic.offset + kMagic.nbytes] == ' ';
    if (is_ustar && !is_gnu && type != 'L' && type != 'x') {
      const std::string prefix = Text(header, kPrefix);
      if (!prefix.empty()) name.insert(0, 1, '/').insert(0, prefix);
    }
    if (type == 'S') throw Error::Corrupt("a member is a sparse file, which is not supported", at);
    const bool describes_next = type == 'x' || type == 'g' || type == 'L' || type == 'K';
    std::uint64_t nbytes = HasData(type) ? Number(header, kSize, at) : 0;
    if (!describes_next && overrides.nbytes && HasData(type)) nbytes = *overrides.nbytes;
    const std::uint64_t data = at + kTarBlockNbytes;
    if (nbytes > std::uint64_t{1} << 60 ||
        (image_->nbytes() <= std::uint64_t{1} << 60 && nbytes > image_->nbytes() - data)) {
      throw Error::Corrupt("a member of " + std::to_string(nbytes) + " bytes is cut off", at);
    }
    offset_ = data + nbytes + PaddingTo(nbytes, kTarBlockNbytes);
    if (!first_header) first_header = at;
    if (describes_next) {
      const std::string text = ReadText({data, nbytes}, at);
      if (type == 'x') ReadPaxRecords(text, at, &overrides);
      if (type == 'L') overrides.name = text.substr(0, text.find('\0'));
      // The others are ignored. 'g' applies to all later members, and gives no names or sizes.
      // 'K' is a link's target.
      continue;
    }
    if (overrides.name) name = *overrides.name;
    if (type == 0) type = !name.empty() && name.back() == '/' ? '5' : '0';
    if (type == '7') type = '0';
    while (!name.empty() && name.back() == '/') name.pop_back();
    *member = {std::move(name), type, *first_header, {data, nbytes}};
    return true;
  }
  return false;
}

std::string TarReader::ReadText(Extent data, std::uint64_t header_offset) {
  if (data.nbytes > kMostTextNbytes || !image_->Require(data)) {
    throw Error::Corrupt("a long name or a pax header is too long or cut off", header_offset);
  }
  const std::uint8_t* text = image_->Address(data.offset);
  return {text, text + data.nbytes};
}

}  // namespace pyckpt
