#include "codec/gzip/block_header.h"

#include <algorithm>

#include "codec/gzip/format.h"
#include "codec/gzip/symbol_decoder.h"

namespace pyckpt::gzip {
namespace {

void SetFixedLengths(BlockHeader* header) {
  header->literals = 288;
  header->distances = 32;
  auto at = header->lengths.begin();
  const auto append = [&](std::size_t count, std::uint8_t length) {
    at = std::fill_n(at, count, length);
  };
  append(144, 8);
  append(112, 9);
  append(24, 7);
  append(8, 8);
  append(32, 5);
}

// The symbols of the code for code lengths that stand for several lengths.
struct Run {
  std::size_t fewest;
  std::size_t extra_nbits;
};
constexpr std::uint16_t kRepeatBefore = 16;
constexpr std::array<Run, 3> kRuns = {{{3, 2}, {3, 3}, {11, 7}}};  // the others repeat 0

bool ReadLengths(BitReader* reader, BlockHeader* header) {
  header->literals = reader->Take(5) + kEndOfBlock + 1;
  header->distances = reader->Take(5) + 1;
  const std::size_t count = reader->Take(4) + 4;
  std::array<std::uint8_t, kLengthCodeOrder.size()> own{};
  for (std::size_t i = 0; i < count; ++i) {
    own[kLengthCodeOrder[i]] = static_cast<std::uint8_t>(reader->Take(3));
  }
  SymbolDecoder code;
  if (code.Set(own.data(), own.size()) != SymbolDecoder::Shape::kComplete) return false;
  const std::size_t wanted = header->literals + header->distances;
  for (std::size_t done = 0; done < wanted;) {
    const SymbolDecoder::Symbol symbol = code.Decode(reader->Peek());
    reader->Skip(symbol.nbits);
    if (symbol.value < kRepeatBefore) {
      header->lengths[done++] = static_cast<std::uint8_t>(symbol.value);
      continue;
    }
    const Run& run = kRuns[symbol.value - kRepeatBefore];
    const std::size_t n = run.fewest + reader->Take(run.extra_nbits);
    const bool repeats = symbol.value == kRepeatBefore;
    if (n > wanted - done || (repeats && done == 0)) return false;
    std::fill_n(header->lengths.begin() + static_cast<std::ptrdiff_t>(done), n,
                repeats ? header->lengths[done - 1] : std::uint8_t{0});
    done += n;
  }
  return true;
}

}  // namespace

bool ReadBlockHeader(BitReader* reader, BlockHeader* header) {
  header->is_last = reader->Take(1) != 0;
  switch (reader->Take(2)) {
    case 0: {
      reader->Align();
      header->kind = BlockHeader::Kind::kStored;
      header->stored_nbytes = reader->Take(16);
      return reader->Take(16) == (~header->stored_nbytes & 0xFFFF);
    }
    case 1:
      header->kind = BlockHeader::Kind::kFixed;
      SetFixedLengths(header);
      return true;
    case 2:
      header->kind = BlockHeader::Kind::kDynamic;
      return ReadLengths(reader, header);
    default:
      return false;
  }
}

}  // namespace pyckpt::gzip
