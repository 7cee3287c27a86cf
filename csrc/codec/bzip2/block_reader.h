// Decodes blocks of bzip2: Huffman codes, move-to-front, block sort, run lengths.
#ifndef PYCKPT_CODEC_BZIP2_BLOCK_READER_H_
#define PYCKPT_CODEC_BZIP2_BLOCK_READER_H_

#include <array>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/bzip2/bits.h"
#include "codec/bzip2/format.h"
#include "codec/bzip2/inverse.h"

namespace pyckpt::bzip2 {

// Of a block, before its runs of equal bytes are made as long as they were: what
// a stream of level 9 may have.
inline constexpr std::uint32_t kMostSortedNbytes = 900'000;

// Keeps its memory from block to block: 7 MB at most.
class BlockReader {
 public:
  // Decodes the block whose magic begins at file's bit, all but its run lengths.
  // Blocks of more than kMostSortedNbytes are corrupt, whatever the stream's
  // header allows; "randomized" ones, which no bzip2 since 1998 writes, count as
  // such too. Throws Error::Corrupt.
  void Read(Span file, std::uint64_t bit);

  // Of the block read last.
  std::uint64_t raw_nbytes() const { return raw_nbytes_; }  // below 46 MB
  std::uint64_t end_bit() const { return end_bit_; }
  std::uint32_t crc() const { return crc_; }  // what its header says

  // Writes raw_nbytes() to out; compares nothing.
  void Expand(std::uint8_t* out) const;

 private:
  // A Huffman code, for look-up: short codes by their bits, others by length.
  struct Code {
    static constexpr unsigned kLookUpBits = 10;
    static constexpr unsigned kMostBits = 20;

    std::array<std::uint16_t, std::size_t{1} << kLookUpBits> look_up;  // symbol << 5 | length
    std::array<std::uint32_t, kMostBits + 1> end;          // behind the last code of each length
    std::array<std::uint32_t, kMostBits + 1> first_place;  // in symbols, less the first code
    std::array<std::uint16_t, 258> symbols;                // in the codes' order
  };

  std::uint32_t ReadBytesInUse(BitReader* bits);
  void ReadSelectors(BitReader* bits);
  void ReadCode(BitReader* bits, std::uint32_t symbols, Code* code);
  void ReadSymbols(BitReader* bits, std::uint32_t end_symbol);
  void FindRuns();
  std::uint32_t NextSymbol(const Code& code, BitReader* bits) const;

  std::uint64_t bit_ = 0;
  std::uint64_t end_bit_ = 0;
  std::uint64_t raw_nbytes_ = 0;
  std::uint32_t crc_ = 0;
  std::uint32_t codes_in_use_ = 0;
  std::array<std::uint8_t, 256> bytes_in_use_{};
  std::vector<std::uint8_t> selectors_;
  std::array<Code, 6> codes_;
  std::vector<std::uint8_t> sorted_;
  std::uint32_t sorted_nbytes_ = 0;
  std::array<std::uint32_t, 256> counts_{};
  BlockUnsorter unsorter_;
  std::vector<std::uint8_t> unsorted_;
  std::vector<std::uint32_t> runs_;  // where four equal bytes end, and their count follows
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_BLOCK_READER_H_
