// Writes Huffman codes of bytes fast: several codes at once, from a table of single bytes or a
// table of pairs.
#ifndef PYCKPT_CODEC_LITERAL_WRITER_H_
#define PYCKPT_CODEC_LITERAL_WRITER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/bit_writer.h"
#include "codec/huffman.h"

namespace pyckpt {

// The longest code of a literal, in bits. Two codes and a byte for their length fit into 32 bits.
inline constexpr int kLongestCode = 12;
// If no literal has a longer code, six codes are written at once instead of four. In bits.
inline constexpr int kShortCode = 9;

// From this many bytes of literals on, the table of pairs and the search for short codes save more
// time than they take.
inline constexpr std::size_t kPairsWorthwhile = std::size_t{32} << 10;

enum class LiteralOrder {
  kForward,   // deflate: the first byte is written first
  kBackward,  // zstd: the last byte is written first, for streams that are read from their end
};

// Keeps the memory of its tables between blocks.
class LiteralWriter {
 public:
  explicit LiteralWriter(LiteralOrder order) : order_(order) {}

  // Makes the tables, and chooses how to write literal_nbytes bytes of literals. The first 256
  // codes are those of the literals.
  void Prepare(const std::vector<HuffmanCode>& codes, std::size_t literal_nbytes);

  void Write(Span literals, BitWriter* writer) const;

 private:
  // Writes most of raw. Returns how many bytes of raw it wrote.
  using Emit = std::size_t (*)(Span raw, const std::uint32_t* table, BitWriter* writer);

  LiteralOrder order_;
  Emit emit_ = nullptr;
  bool use_pairs_ = false;
  // The length is in the low eight bits, the code above.
  std::array<std::uint32_t, 256> table_{};
  // index: the byte at the lower address, plus 256 times the other
  std::vector<std::uint32_t> pair_table_;
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_LITERAL_WRITER_H_
