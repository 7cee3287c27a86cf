#include "read/tar_reader.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/decoder.h"
#include "container/tar_fields.h"
#include "container/tar_format.h"

namespace pyckpt {
namespace {

using namespace ustar;

constexpr std::size_t kBinary = 0x80;

// Whether another header of the same sparse file follows: in its first header, and in the others.
constexpr std::size_t kSparseContinues = 482;
constexpr std::size_t kSparseContinuesFurther = 504;

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
  std::optional<std::string> sparse_name;  // goes before name
  std::optional<std::string> link;
  std::optional<std::uint64_t> nbytes;
  bool is_sparse = false;
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
    if (key == "linkpath") overrides->link = value;
    if (key == "size") {
      overrides->nbytes = Decimal(value);
      if (!overrides->nbytes) throw Error::Corrupt("the size in a pax header is invalid", at);
    }
    if (key == "GNU.sparse.name") overrides->sparse_name = value;
    if (key.rfind("GNU.sparse.", 0) == 0) overrides->is_sparse = true;
    begin += *nbytes;
  }
}

// Links, devices, folders and pipes have none, whatever size their headers say.
bool HasData(char type) { return type < '1' || type > '6'; }

// The header says something about the next member, or about the whole tar ('V': its label).
bool IsNoMember(char type) {
  return type == 'x' || type == 'X' || type == 'g' || type == 'L' || type == 'K' || type == 'V';
}

// The type that TarReader::Next() gives for the one in a header.
char PlainType(char type, const std::string& name) {
  if (type == 0 && !name.empty() && name.back() == '/') return '5';
  if (type == 'D') return '5';  // GNU: a folder, and its data is a list of its files
  return (type >= '1' && type <= '6') || type == 'S' || type == 'M' ? type : '0';
}

}  // namespace

bool TarReader::Next(TarMember* member) {
  Overrides overrides;
  std::uint64_t first_header = kUnknownNbytes;  // of this member
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
      if (first_header != kUnknownNbytes) throw Error::Corrupt("a tar header is missing", at);
      ended_ = true;
      offset_ += kTarBlockNbytes;
      break;
    }
    if (!ChecksumFits(header, at)) {
      throw Error::Corrupt("a tar header's checksum does not match", at);
    }
    auto type = static_cast<char>(header[kTypeOffset]);
    const bool is_ustar = Text(header, kMagic) == "ustar";
    std::string name = Text(header, kName);
    // GNU's format has other fields in the place of the prefix.
    const bool is_gnu = is_ustar && header[kMagic.offset + kMagic.nbytes] == ' ';
    if (is_ustar && !is_gnu && !IsNoMember(type)) {
      const std::string prefix = Text(header, kPrefix);
      if (!prefix.empty()) name.insert(0, 1, '/').insert(0, prefix);
    }
    std::string link = Text(header, kLink);
    std::uint64_t nbytes = HasData(type) ? Number(header, kSize, at) : 0;
    if (!IsNoMember(type) && overrides.nbytes && HasData(type)) nbytes = *overrides.nbytes;
    // Reads further headers, so header must not be used any more.
    const std::uint64_t data = type == 'S' ? SkipSparseHeaders(at) : at + kTarBlockNbytes;
    if (nbytes > std::uint64_t{1} << 60 ||
        (image_->nbytes() <= std::uint64_t{1} << 60 && nbytes > image_->nbytes() - data)) {
      throw Error::Corrupt("a member of " + std::to_string(nbytes) + " bytes is cut off", at);
    }
    offset_ = data + nbytes + PaddingTo(nbytes, kTarBlockNbytes);
    if (first_header == kUnknownNbytes) first_header = at;
    if (type == 'V') {
      overrides = {};
      first_header = kUnknownNbytes;
      continue;
    }
    if (IsNoMember(type)) {
      // 'g' applies to all later members, and gives no names or sizes.
      const std::string text = ReadText({data, nbytes}, at);
      if (type == 'x' || type == 'X') ReadPaxRecords(text, at, &overrides);
      if (type == 'L') overrides.name = text.substr(0, text.find('\0'));
      if (type == 'K') overrides.link = text.substr(0, text.find('\0'));
      continue;
    }
    if (overrides.name) name = *overrides.name;
    if (overrides.sparse_name) name = *overrides.sparse_name;
    if (overrides.link) link = *overrides.link;
    type = overrides.is_sparse ? 'S' : PlainType(type, name);
    if (type == '5') nbytes = 0;
    if (type != '1' && type != '2') link.clear();
    while (!name.empty() && name.back() == '/') name.pop_back();
    *member = {std::move(name), type, first_header, {data, nbytes}, std::move(link)};
    return true;
  }
  return false;
}

std::uint64_t TarReader::SkipSparseHeaders(std::uint64_t at) {
  // GNU: each of these headers says in one byte whether another one follows.
  std::size_t more = kSparseContinues;
  for (;;) {
    const bool continues = image_->Address(at)[more] != 0;
    at += kTarBlockNbytes;
    if (!continues) return at;
    image_->Skip(at);
    if (!image_->Require({at, kTarBlockNbytes})) {
      throw Error::Corrupt("the headers of a sparse file are cut off", at);
    }
    more = kSparseContinuesFurther;
  }
}

std::string TarReader::ReadText(Extent data, std::uint64_t header_offset) {
  if (data.nbytes > kMostTextNbytes || !image_->Require(data)) {
    throw Error::Corrupt("a long name or a pax header is too long or cut off", header_offset);
  }
  const std::uint8_t* text = image_->Address(data.offset);
  return {text, text + data.nbytes};
}

}  // namespace pyckpt
