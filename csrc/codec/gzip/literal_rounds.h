// Decodes literals of several deflate streams in turn.
//
// Each code of a stream says where the next one begins. So one stream keeps a core waiting most of
// the time, and independent streams, decoded step by step in turn, take little longer than one. In
// a round, each stream gives as many literals as surely fit into one word of its bits, without a
// branch. Anything else than a literal ends the rounds.
#ifndef PYCKPT_CODEC_GZIP_LITERAL_ROUNDS_H_
#define PYCKPT_CODEC_GZIP_LITERAL_ROUNDS_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/gzip/symbol_decoder.h"

namespace pyckpt::gzip {

// The most streams in turn. More would not fit into the registers and the L1 cache of a core: on a
// Zen 4, six took 0.30 times as long for a byte as one, eight as long as six.
inline constexpr std::size_t kLanes = 6;

// The longest code of a literal that rounds decode, in bits.
inline constexpr unsigned kLongestInRounds = 12;
// How many bits of the stream a round takes at most. A word has so many, wherever it begins.
inline constexpr std::size_t kRoundNbits = 57;

// The literals of one block, looked up by the next bits of the stream.
class LiteralTable {
 public:
  // An entry has the literal in its upper byte and the code's length in its lower one. All other
  // bits begin with what is no literal, or one whose code is longer than the table's index. They
  // have kOther, which as the amount of a shift is 0.
  static constexpr std::uint16_t kOther = 0x80;
  static constexpr unsigned kLiteralShift = 8;
  static constexpr unsigned kLengthMask = 63;

  // Makes the table for codes of up to nbits bits, at most kLongestInRounds.
  void Fill(const SymbolDecoder& code, unsigned nbits);
  // Makes it as long as codes of nbits bits ask for, if it is shorter.
  void Extend(unsigned nbits);

  // How many bits its index has.
  unsigned nbits() const { return nbits_; }
  std::uint16_t operator[](std::uint64_t index) const { return entries_[index]; }
  // The same for those who look up one literal. It has no bits if it is none.
  SymbolDecoder::Symbol Literal(std::uint64_t index) const {
    const unsigned entry = entries_[index];
    return {static_cast<std::uint16_t>(entry >> kLiteralShift),
            static_cast<std::uint8_t>(entry & kLengthMask)};
  }

 private:
  // Room that no table uses. With it, the usual tables, which are short, of streams that are
  // decoded in turn do not share the same lines of the L1 cache.
  static constexpr std::size_t kUnused = 512;

  std::array<std::uint16_t, (std::size_t{1} << kLongestInRounds) + kUnused> entries_;
  unsigned nbits_ = 0;
};

struct LiteralLane {
  std::uint64_t bit = 0;        // where the next code begins in the file
  std::uint8_t* out = nullptr;  // where the next literal goes
  bool stopped = false;         // whether one of the next literals of a round is none
  LiteralTable table;
};

// How many literals a round gives of each lane at most.
inline constexpr std::size_t kMostInRound = 6;
// How many it gives if no table has more than nbits bits.
constexpr std::size_t LiteralsInRound(unsigned nbits) {
  return nbits * kMostInRound <= kRoundNbits ? kMostInRound : kRoundNbits / nbits;
}

// Decodes rounds of the first count lanes, at least one and at most kLanes, until they are done or
// a lane stops. Returns how many all lanes took; those that did not stop may have taken one more. A
// lane that stops is left as it was before that round; its out may have been written to. All tables
// must have nbits bits. Each lane must have kRoundNbits bits of code and room for kMostInRound
// bytes for each round, and eight bytes of the file must be readable from the place of each of its
// codes on.
std::size_t DecodeLiteralRounds(const std::uint8_t* file, LiteralLane* lanes, std::size_t count,
                                unsigned nbits, std::size_t rounds);

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_LITERAL_ROUNDS_H_
