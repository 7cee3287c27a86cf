// Literals of a block, written as fast as a loop can: several codes at once, from tables of
// single bytes or of pairs.
#ifndef PYCKPT_CODEC_GZIP_LITERALS_H_
#define PYCKPT_CODEC_GZIP_LITERALS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/gzip/bit_writer.h"
#include "codec/huffman.h"

namespace pyckpt::gzip {

// The longest code of a literal: two of them and a byte for a length fit 32 bits.
inline constexpr int kLongestCode = 12;
// Where no code is longer, six of them are written at once, not four.
inline constexpr int kShortCode = 9;

// To fill the table of pairs, and to look for short codes, takes as long as to write so many
// bytes of literals saves by it.
inline constexpr std::size_t kPairsWorthwhile = std::size_t{32} << 10;

// Keeps its tables from block to block.
class LiteralWriter {
 public:
  // Chooses how to write literal_nbytes literals. codes are those of all 256 bytes, and begin
  // where they lie.
  void Prepare(const std::vector<HuffmanCode>& codes, std::size_t literal_nbytes);

  void Write(Span literals, BitWriter* writer) const;

 private:
  // Writes most of raw, and returns how many bytes.
  using Emit = std::size_t (*)(Span raw, const std::uint32_t* table, BitWriter* writer);

  Emit emit_ = nullptr;
  bool use_pairs_ = false;
  // Code above, length in the low eight bits.
  std::array<std::uint32_t, 256> table_{};
  std::vector<std::uint32_t> pair_table_;  // for two bytes at once, low one first
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_LITERALS_H_
