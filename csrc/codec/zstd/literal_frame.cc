#include "codec/zstd/literal_frame.h"

#include <algorithm>
#include <cstring>

#include "codec/bit_writer.h"
#include "codec/zstd/format.h"
#include "codec/zstd/xxh64.h"

namespace pyckpt::zstd {
namespace {

constexpr std::size_t kFrameHeaderNbytes = 9;
constexpr std::size_t kChecksumNbytes = 4;

// Kinds of blocks and of literals.
constexpr unsigned kRawBlock = 0;
constexpr unsigned kOneByteBlock = 1;
constexpr unsigned kCompressedBlock = 2;
constexpr unsigned kRawLiterals = 0;
constexpr unsigned kCodedLiterals = 2;
constexpr unsigned kCodedAsBefore = 3;  // with the table that was sent last

constexpr std::size_t kRawLiteralsHeaderNbytes = 3;
constexpr std::size_t kCodedLiteralsHeaderNbytes = 5;
constexpr std::size_t kStreams = 4;
constexpr std::size_t kStreamSizesNbytes = 2 * (kStreams - 1);
// Fewer literals are not worth four streams.
constexpr std::size_t kFewLiterals = 64;

void StoreLe(std::uint8_t* out, std::uint64_t value, std::size_t nbytes) {
  for (std::size_t i = 0; i < nbytes; ++i) out[i] = static_cast<std::uint8_t>(value >> (8 * i));
}

}  // namespace

std::size_t LiteralFrameWriter::Bound(std::size_t raw_nbytes, std::size_t planned_blocks) {
  // Of a block, with its table, and with the header and the checksum of a frame.
  constexpr std::size_t kMostFixedNbytes = 512;
  const std::size_t blocks = planned_blocks + raw_nbytes / kMostInBlock + 1;
  // A sequence takes fewer bytes than its match.
  return raw_nbytes * kLongestLiteralCode / 8 + blocks * kMostFixedNbytes;
}

void LiteralFrameWriter::Begin(const std::vector<Run>& runs, const std::vector<Repeat>& repeats,
                               std::size_t begin, std::uint8_t* out) {
  runs_ = &runs;
  repeats_ = &repeats;
  next_ = 0;
  while (next_ < repeats.size() && repeats[next_].end <= begin) ++next_;
  begin_ = end_ = begin;
  table_is_sent_ = false;
  header_ = out;
  last_block_ = nullptr;
  out_ = out + kFrameHeaderNbytes;
}

void LiteralFrameWriter::Append(const BlockPlan& plan, const LiteralCode& code) {
  const bool coded = plan.kind != BlockKind::kStored;
  if (coded) literals_.Prepare(code.codes(), plan.literal_nbytes);
  table_is_sent_ = false;
  while (end_ < plan.end) {
    const std::size_t end = std::min(plan.end, end_ + kMostInBlock);
    if (!WriteOneByte(end_, end) && !(coded && WriteCompressed(end_, end, code))) {
      WriteRaw(end_, end);
    }
    end_ = end;
    while (next_ < repeats_->size() && (*repeats_)[next_].end <= end_) ++next_;
  }
}

bool LiteralFrameWriter::WriteOneByte(std::size_t begin, std::size_t end) {
  // zstd up to 1.4.3 refuses files in which such a block is the first of a frame.
  if (begin == begin_ || next_ == repeats_->size()) return false;
  const Repeat& repeat = (*repeats_)[next_];
  if (begin < repeat.begin || repeat.end < end) return false;
  // All other bytes repeat these. A repeat lies in one run.
  Span first;
  ForEachPart(*runs_, begin, std::min(end, begin + repeat.distance),
              [&](Span bytes) { first = bytes; });
  if (std::memcmp(first.data, first.data + 1, first.nbytes - 1) != 0) return false;
  out_[kBlockHeaderNbytes] = first.data[0];
  FinishBlock(kOneByteBlock, end - begin, out_ + kBlockHeaderNbytes + 1);
  return true;
}

void LiteralFrameWriter::WriteRaw(std::size_t begin, std::size_t end) {
  std::uint8_t* at = out_ + kBlockHeaderNbytes;
  ForEachPart(*runs_, begin, end, [&](Span bytes) {
    std::memcpy(at, bytes.data, bytes.nbytes);
    at += bytes.nbytes;
  });
  FinishBlock(kRawBlock, end - begin, at);
}

bool LiteralFrameWriter::WriteCompressed(std::size_t begin, std::size_t end,
                                         const LiteralCode& code) {
  const bool table_was_sent = table_is_sent_;
  const Span literals = Split(begin, end);
  std::uint8_t* contents = out_ + kBlockHeaderNbytes;
  std::uint8_t* at = WriteSequences(sequences_, WriteLiterals(literals, code, contents));
  const auto nbytes = static_cast<std::size_t>(at - contents);
  if (nbytes >= end - begin) {
    table_is_sent_ = table_was_sent;
    return false;
  }
  FinishBlock(kCompressedBlock, nbytes, at);
  return true;
}

Span LiteralFrameWriter::Split(std::size_t begin, std::size_t end) {
  sequences_.clear();
  parts_.clear();
  std::size_t nbytes = 0;
  std::size_t since_match = 0;
  const auto add_literals = [&](std::size_t from, std::size_t to) {
    ForEachPart(*runs_, from, to, [&](Span bytes) { parts_.push_back(bytes); });
    nbytes += to - from;
    since_match += to - from;
  };
  SplitAtRepeats(begin, end, *repeats_, &next_, kShortestRepeat, add_literals,
                 [&](std::size_t from, std::size_t to, std::size_t distance) {
                   // Only bytes of this frame can be repeated.
                   const std::size_t start = std::max(from, begin_ + distance);
                   if (start + kShortestRepeat > to) return add_literals(from, to);
                   if (from < start) add_literals(from, start);
                   sequences_.push_back({since_match, to - start, distance});
                   since_match = 0;
                 });
  if (parts_.size() == 1) return parts_.front();
  std::uint8_t* to = joined_.Reserve(std::max<std::size_t>(nbytes, 1));
  for (const Span& part : parts_) {
    std::memcpy(to, part.data, part.nbytes);
    to += part.nbytes;
  }
  return {joined_.data(), nbytes};
}

std::uint8_t* LiteralFrameWriter::WriteLiterals(Span literals, const LiteralCode& code,
                                                std::uint8_t* out) {
  const std::size_t n = literals.nbytes;
  if (n >= kFewLiterals && !code.description().empty()) {
    std::uint8_t* at = out + kCodedLiteralsHeaderNbytes;
    if (!table_is_sent_) at = std::copy(code.description().begin(), code.description().end(), at);
    std::uint8_t* end = WriteStreams(literals, at);
    const auto nbytes = static_cast<std::size_t>(end - out) - kCodedLiteralsHeaderNbytes;
    if (nbytes < n) {
      const std::uint64_t type = table_is_sent_ ? kCodedAsBefore : kCodedLiterals;
      constexpr std::uint64_t kFourStreams = 3 << 2;  // both sizes have 18 bits
      const std::uint64_t sizes = std::uint64_t{n} << 4 | std::uint64_t{nbytes} << 22;
      StoreLe(out, type | kFourStreams | sizes, kCodedLiteralsHeaderNbytes);
      table_is_sent_ = true;
      return end;
    }
  }
  constexpr std::uint64_t kSize = 3 << 2;  // has 20 bits
  StoreLe(out, kRawLiterals | kSize | std::uint64_t{n} << 4, kRawLiteralsHeaderNbytes);
  return std::copy_n(literals.data, n, out + kRawLiteralsHeaderNbytes);
}

std::uint8_t* LiteralFrameWriter::WriteStreams(Span literals, std::uint8_t* out) const {
  const std::size_t stream_nbytes = (literals.nbytes + kStreams - 1) / kStreams;
  std::uint8_t* at = out + kStreamSizesNbytes;
  for (std::size_t i = 0; i < kStreams; ++i) {
    const std::size_t begin = i * stream_nbytes;
    const std::size_t end = std::min(literals.nbytes, begin + stream_nbytes);
    BitWriter writer(at);
    literals_.Write({literals.data + begin, end - begin}, &writer);
    writer.Put(1, 1);  // where the decoder begins
    std::uint8_t* stream_end = writer.Align();
    if (i + 1 < kStreams) StoreLe(out + 2 * i, static_cast<std::uint64_t>(stream_end - at), 2);
    at = stream_end;
  }
  return at;
}

void LiteralFrameWriter::FinishBlock(unsigned type, std::size_t nbytes, std::uint8_t* end) {
  StoreLe(out_, type << 1 | std::uint64_t{nbytes} << 3, kBlockHeaderNbytes);
  last_block_ = out_;
  out_ = end;
}

std::uint8_t* LiteralFrameWriter::End() {
  // The window is the whole frame; four bytes of size; with a checksum.
  constexpr std::uint8_t kDescriptor = 2 << 6 | 1 << 5 | 1 << 2;
  StoreLe(header_, kFrameMagic, 4);
  header_[4] = kDescriptor;
  StoreLe(header_ + 5, end_ - begin_, 4);
  last_block_[0] |= 1;
  Xxh64 checksum;
  ForEachPart(*runs_, begin_, end_, [&](Span bytes) { checksum.Add(bytes); });
  StoreLe(out_, checksum.Digest(), kChecksumNbytes);
  return out_ + kChecksumNbytes;
}

}  // namespace pyckpt::zstd
