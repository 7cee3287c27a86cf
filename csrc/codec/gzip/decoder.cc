#include "codec/gzip/decoder.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "base/crc32.h"
#include "base/error.h"
#include "codec/gzip/chunk_index.h"
#include "codec/gzip/chunk_inflater.h"
#include "codec/gzip/format.h"
#include "codec/gzip/inflater.h"
#include "codec/gzip/libdeflate.h"
#include "codec/gzip/member.h"
#include "codec/gzip/raw_inflater.h"

namespace pyckpt::gzip {
namespace {

std::size_t LoadLe16(const std::uint8_t* p) { return p[0] | std::size_t{p[1]} << 8; }

bool HasMagic(Span file, std::uint64_t at) {
  return file.nbytes - at >= 3 && file.data[at] == 0x1F && file.data[at + 1] == 0x8B &&
         file.data[at + 2] == 8;
}

// The CRC-32 and the length of the part of a member that is decoded so far.
struct Total {
  std::uint32_t crc = 0;
  std::uint64_t nbytes = 0;

  bool Matches(Span file, std::uint64_t at) const {
    return file.nbytes - at >= kTrailerNbytes && LoadLe32(file.data + at) == crc &&
           LoadLe32(file.data + at + 4) == static_cast<std::uint32_t>(nbytes);
  }

  void RequireTrailer(Span file, std::uint64_t at) const {
    if (file.nbytes - at < kTrailerNbytes) {
      throw Error::Corrupt("gzip: the file ends within a trailer", at);
    }
    if (LoadLe32(file.data + at) != crc) {
      throw Error::Corrupt("gzip: the checksum does not match", at);
    }
    if (LoadLe32(file.data + at + 4) != static_cast<std::uint32_t>(nbytes)) {
      throw Error::Corrupt("gzip: the length does not match", at + 4);
    }
  }
};

class ChunkDecoder final : public BlockDecoder {
 public:
  // trailer is where the member's trailer begins in the file.
  explicit ChunkDecoder(std::uint64_t trailer) : trailer_(trailer) {}

  DecodedBlock Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                      std::size_t capacity) override {
    if (capacity < block.raw_nbytes) {
      throw Error(ErrorKind::kArgument, "gzip: a chunk needs more room");
    }
    const std::uint64_t begin = block.code_bit / 8;
    const Span code{file.data + begin, block.code_nbits / 8};
    const std::uint64_t end = begin + code.nbytes;
    const Inflated result = end == trailer_
                                ? raw_inflater_.InflateStream(code, out, block.raw_nbytes)
                                : raw_inflater_.InflateChunk(code, out, block.raw_nbytes);
    if (result != Inflated::kWhole) {
      throw Error::Corrupt("gzip: a chunk does not match the chunk index", begin);
    }
    const std::size_t nbytes = block.raw_nbytes;
    return {nbytes, end * 8, Crc32({out, nbytes})};
  }

  void DecodeInTurn(Span file, std::vector<BlockTask>* tasks) override {
    if (tasks->size() < 2) return BlockDecoder::DecodeInTurn(file, tasks);
    for (BlockTask* task : inflater_.Inflate(file, tasks)) DecodeTask(file, task);
  }

 private:
  std::uint64_t trailer_;
  RawInflater raw_inflater_;
  ChunkInflater inflater_;
};

class MemberChecker final : public StreamChecker {
 public:
  MemberChecker(Span file, std::uint64_t trailer) : file_(file), trailer_(trailer) {}

  void Append(const CodeBlock& /*block*/, const DecodedBlock& decoded) override {
    total_.crc = Crc32Combine(total_.crc, decoded.check, decoded.raw_nbytes);
    total_.nbytes += decoded.raw_nbytes;
  }

  void End() override { total_.RequireTrailer(file_, trailer_); }
  std::uint64_t used_nbytes() const override { return file_.nbytes; }

 private:
  Span file_;
  std::uint64_t trailer_;
  Total total_;
};

class ChunkStream final : public BlockStream {
 public:
  ChunkStream(Span file, std::uint64_t trailer, std::vector<CodeBlock> blocks)
      : file_(file), trailer_(trailer), blocks_(std::move(blocks)) {}

  const std::vector<CodeBlock>& blocks() const override { return blocks_; }
  std::size_t most_in_turn() const override { return ChunkInflater::kMostInTurn; }
  std::unique_ptr<BlockDecoder> NewDecoder() const override {
    return std::make_unique<ChunkDecoder>(trailer_);
  }
  std::unique_ptr<StreamChecker> NewChecker() const override {
    return std::make_unique<MemberChecker>(file_, trailer_);
  }

 private:
  Span file_;
  std::uint64_t trailer_;
  std::vector<CodeBlock> blocks_;
};

// An index, and what is around it at the end of a file.
constexpr std::size_t kMostEndNbytes = kMostIndexNbytes + 1024;

// A chunk index, and where the parts of its file are.
struct FoundIndex {
  ChunkIndex chunks;
  std::uint64_t last_block = 0;  // of the first member: where its code begins
  std::uint64_t trailer = 0;     // of the first member
};

// The index at the end of the only member.
std::optional<FoundIndex> FindIndexBehindTar(Span file) {
  const std::uint64_t trailer = file.nbytes - kTrailerNbytes;
  std::optional<ChunkIndex> index = DecodeChunkIndex({file.data, trailer});
  if (!index || trailer - index->nbytes < kHeaderNbytes + kStoredHeaderNbytes) return std::nullopt;
  const std::uint64_t last_block = trailer - index->nbytes - kStoredHeaderNbytes;
  return FoundIndex{std::move(*index), last_block, trailer};
}

// The index in the header of a second member, which has no data: see IndexPlace.
std::optional<FoundIndex> FindIndexMember(Span file) {
  const std::uint64_t index_end = file.nbytes - kTrailerNbytes - kStoredHeaderNbytes;
  std::optional<ChunkIndex> index = DecodeChunkIndex({file.data, index_end});
  constexpr std::size_t kBeforeIndex = kHeaderNbytes + 2 + kSubfieldNbytes;
  constexpr std::size_t kFirstMember = kHeaderNbytes + kStoredHeaderNbytes + kTrailerNbytes;
  if (!index || index_end - index->nbytes < kFirstMember + kBeforeIndex) return std::nullopt;
  const std::uint64_t member = index_end - index->nbytes - kBeforeIndex;
  const std::uint8_t* field = file.data + member + kHeaderNbytes;
  if (!HasMagic(file, member) || file.data[member + 3] != kExtraFlag ||
      LoadLe16(field) != kSubfieldNbytes + index->nbytes ||
      !std::equal(kSubfieldId.begin(), kSubfieldId.end(), field + 2) ||
      LoadLe16(field + 4) != index->nbytes ||
      !std::equal(kEmptyLastBlock.begin(), kEmptyLastBlock.end(), file.data + index_end) ||
      !IsZero(file, index_end + kStoredHeaderNbytes)) {
    return std::nullopt;
  }
  const std::uint64_t trailer = member - kTrailerNbytes;
  index->nbytes = 0;  // in the decoded stream
  return FoundIndex{std::move(*index), trailer - kStoredHeaderNbytes, trailer};
}

std::optional<FoundIndex> FindIndex(Span file) {
  if (file.nbytes < kHeaderNbytes + kStoredHeaderNbytes + kTrailerNbytes || file.data[3] != 0) {
    return std::nullopt;
  }
  std::optional<FoundIndex> found = FindIndexBehindTar(file);
  return found ? std::move(found) : FindIndexMember(file);
}

// The chunks, then the member's last block, which holds the index or nothing, as blocks. Empty if
// the index does not fit this file. The file is then decoded from start to end, which finds any
// damage.
std::vector<CodeBlock> FindChunks(Span file, const FoundIndex& found) {
  const ChunkIndex* index = &found.chunks;
  const std::uint64_t trailer = found.trailer;
  const std::uint64_t index_code = found.last_block;
  if (index->code_nbytes.empty() || index->raw_nbytes > kMostBlockNbytes ||
      index->first_offset != kHeaderNbytes) {
    return {};
  }
  const std::size_t chunks = index->code_nbytes.size();
  // The last chunk's size follows from the member's size, of which the trailer has the low 32 bits.
  const auto last_nbytes = static_cast<std::uint32_t>(
      LoadLe32(file.data + trailer + 4) - index->nbytes - (chunks - 1) * index->raw_nbytes);
  if (last_nbytes > index->raw_nbytes) return {};
  std::vector<CodeBlock> blocks;
  blocks.reserve(chunks + 1);
  CodeBlock block;
  block.code_bit = index->first_offset * 8;
  block.raw_offset = 0;
  const auto append = [&](std::uint64_t code_nbytes, std::uint64_t raw_nbytes) {
    block.code_nbits = code_nbytes * 8;
    block.raw_nbytes = raw_nbytes;
    blocks.push_back(block);
    block.code_bit += block.code_nbits;
    block.raw_offset += raw_nbytes;
  };
  for (std::size_t i = 0; i < chunks; ++i) {
    const std::uint64_t code_nbytes = index->code_nbytes[i];
    const std::uint64_t raw_nbytes = i + 1 < chunks ? index->raw_nbytes : last_nbytes;
    if (code_nbytes > index_code - block.code_bit / 8 ||
        raw_nbytes > code_nbytes * kMostExpansion) {
      return {};
    }
    append(code_nbytes, raw_nbytes);
  }
  if (block.code_bit != index_code * 8) return {};
  append(kStoredHeaderNbytes + index->nbytes, index->nbytes);
  return blocks;
}

class MemberDecoder final : public SequentialDecoder {
 public:
  explicit MemberDecoder(Span file) : file_(file) { StartMember(0); }

  std::size_t Read(std::uint8_t* out, std::size_t nbytes) override {
    std::size_t done = 0;
    while (done < nbytes && !ended_) {
      // In small steps, so that the bytes are still in the cache for the checksum.
      const std::size_t n = std::min(nbytes - done, kStepNbytes);
      const std::size_t got = inflater_.Inflate(out + done, n);
      total_.crc = Crc32({out + done, got}, total_.crc);
      total_.nbytes += got;
      done += got;
      if (inflater_.ended()) {
        EndMember(inflater_.offset());
      } else if (got < n) {
        throw Error::Corrupt("gzip: the file ends within a member", file_.nbytes);
      }
    }
    return done;
  }

  // Of a file of one member, the last bytes are its size.
  std::uint64_t WholeNbytes() const override {
    const std::uint32_t nbytes = LoadLe32(file_.data + file_.nbytes - 4);
    const bool is_worthwhile = is_first_ && total_.nbytes <= nbytes / kWorthBeginningAgain;
    return is_worthwhile && nbytes <= kMostWholeNbytes ? nbytes : kUnknownNbytes;
  }

  bool ReadWhole(std::uint8_t* out, std::size_t nbytes) override {
    const std::uint64_t given = total_.nbytes;
    const std::optional<std::uint64_t> end = InflateWhole(SkipHeader(0), out, nbytes);
    if (end) {
      total_ = {Crc32({out, nbytes}), nbytes};
      if (total_.Matches(file_, *end) && !HasMagic(file_, *end + kTrailerNbytes)) {
        EndMember(*end);
        return true;
      }
    }
    StartMember(0);
    Read(out, given);
    return false;
  }

  std::uint64_t used_nbytes() const override { return used_nbytes_; }

 private:
  static constexpr std::size_t kStepNbytes = std::size_t{512} << 10;
  // libdeflate cannot be stopped. It takes some three seconds for so many bytes.
  static constexpr std::size_t kMostWholeNbytes = std::size_t{1} << 30;
  // If no more than this part of the stream has to be decoded again.
  static constexpr std::size_t kWorthBeginningAgain = 8;

  // Decodes deflate from byte begin of the file on to exactly nbytes bytes. Returns where the code
  // ends. None if it is damaged or if its size is another one.
  std::optional<std::uint64_t> InflateWhole(std::uint64_t begin, std::uint8_t* out,
                                            std::size_t nbytes) const {
    const Libdeflate decompressor;
    std::size_t used = 0;
    const libdeflate_result result = libdeflate_deflate_decompress_ex(
        decompressor.get(), file_.data + begin, file_.nbytes - begin, out, nbytes, &used, nullptr);
    if (result != LIBDEFLATE_SUCCESS) return std::nullopt;
    return begin + used;
  }

  void StartMember(std::uint64_t at) {
    const std::uint64_t code = SkipHeader(at);
    total_ = {};
    inflater_.Start(file_, code);
  }

  // at is where its code ends.
  void EndMember(std::uint64_t at) {
    total_.RequireTrailer(file_, at);
    is_first_ = false;
    const std::uint64_t next = at + kTrailerNbytes;
    ended_ = !HasMagic(file_, next);
    used_nbytes_ = next;
    if (!ended_) {
      StartMember(next);
    } else if (IsZero(file_, next)) {
      used_nbytes_ = file_.nbytes;
    }
  }

  // Checks a member's header and returns where its code begins.
  std::uint64_t SkipHeader(std::uint64_t begin) const {
    enum Flags : unsigned { kCrc = 2, kExtra = 4, kName = 8, kComment = 16, kReserved = 0xE0 };
    if (!HasMagic(file_, begin)) throw Error::Corrupt("gzip: no member begins here", begin);
    std::uint64_t at = begin;
    const auto skip = [&](std::uint64_t nbytes) {
      if (file_.nbytes - at < nbytes) {
        throw Error::Corrupt("gzip: the file ends within a header", file_.nbytes);
      }
      at += nbytes;
    };
    skip(kHeaderNbytes);
    const unsigned flags = file_.data[begin + 3];
    if ((flags & kReserved) != 0) throw Error::Corrupt("gzip: unknown header flags", begin + 3);
    if ((flags & kExtra) != 0) {
      skip(2);
      skip(LoadLe16(file_.data + at - 2));
    }
    for (const unsigned text : {kName, kComment}) {
      if ((flags & text) == 0) continue;
      const std::uint8_t* end = file_.data + file_.nbytes;
      skip(static_cast<std::uint64_t>(std::find(file_.data + at, end, 0) - (file_.data + at)) + 1);
    }
    if ((flags & kCrc) != 0) {
      const std::uint32_t crc = Crc32({file_.data + begin, static_cast<std::size_t>(at - begin)});
      skip(2);
      if (LoadLe16(file_.data + at - 2) != (crc & 0xFFFF)) {
        throw Error::Corrupt("gzip: a header's checksum does not match", at - 2);
      }
    }
    return at;
  }

  Span file_;
  Inflater inflater_;
  Total total_;           // of the member that is being read
  bool is_first_ = true;  // whether it is the first one
  bool ended_ = false;
  std::uint64_t used_nbytes_ = 0;
};

}  // namespace

bool GzipDecompressor::Recognizes(Span file) const { return HasMagic(file, 0); }

std::unique_ptr<BlockStream> GzipDecompressor::OpenBlocks(const FileBytes& stored) const {
  stored.NeedLast(kMostEndNbytes);
  const Span file = stored.bytes();
  const std::optional<FoundIndex> index = FindIndex(file);
  if (!index) return nullptr;
  std::vector<CodeBlock> chunks = FindChunks(file, *index);
  if (chunks.empty()) return nullptr;
  return std::make_unique<ChunkStream>(file, index->trailer, std::move(chunks));
}

bool GzipDecompressor::IsIndex(Span raw) const {
  const std::optional<ChunkIndex> index = DecodeChunkIndex(raw);
  return index && index->nbytes == raw.nbytes;
}

std::unique_ptr<SequentialDecoder> GzipDecompressor::OpenSequential(Span file) const {
  return std::make_unique<MemberDecoder>(file);
}

}  // namespace pyckpt::gzip
