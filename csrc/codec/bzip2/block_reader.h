// Decodes bzip2 blocks: Huffman codes, move-to-front, block sort, run lengths.
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

// The most bytes of a block before its runs are expanded. This is the limit of level 9.
inline constexpr std::uint32_t kMostSortedNbytes = 900'000;

// Keeps its memory between blocks: 7 MB at most.
class BlockReader {
 public:
  // Decodes the block whose magic begins at this bit of file, but does not expand its runs. Throws
  // Error::Corrupt. A block of more than kMostSortedNbytes is corrupt; the level in the stream's
  // header is not considered. "Randomized" blocks, which no bzip2 since 1998 writes, also count as
  // corrupt.
  void Read(Span file, std::uint64_t bit);

  // These describe the block that was read last.
  std::uint64_t raw_nbytes() const { return raw_nbytes_; }  // below 46 MB
  std::uint64_t end_bit() const { return end_bit_; }
  std::uint32_t crc() const { return crc_; }  // as its header says

  // Expands the runs and writes raw_nbytes() bytes to out. Does not compare the checksum.
  void Expand(std::uint8_t* out) const;

 private:
  // A Huffman code as look-up tables: short codes are found by their bits, longer ones by their
  // length.
  struct Code {
    static constexpr unsigned kLookUpBits = 10;
    static constexpr unsigned kMostBits = 20;

    std::array<std::uint16_t, std::size_t{1} << kLookUpBits> look_up;  // symbol << 5 | length
    std::array<std::uint32_t, kMostBits + 1> end;  // one more than the last code of each length
    std::array<std::uint32_t, kMostBits + 1> first_place;  // index in symbols, minus the first code
    std::array<std::uint16_t, 258> symbols;                // in the order of their codes
    bool near;                                             // see FrontList::Take()
  };

  std::uint32_t ReadBytesInUse(BitReader* bits);
  void ReadSelectors(BitReader* bits);
  void ReadCode(BitReader* bits, std::uint32_t symbols, Code* code);
  // Reads the symbols up to end_symbol. Writes the bytes that they stand for to sorted_ and counts
  // them.
  void ReadSymbols(std::uint32_t end_symbol, BitReader* bits);
  void ReadSymbolsAvx2(std::uint32_t end_symbol, BitReader* bits);
  template <typename List>
  void ReadSymbolsInto(List list, std::uint32_t end_symbol, BitReader* bits);
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
  std::vector<std::uint32_t> runs_;  // positions of the counts that follow four equal bytes
};

}  // namespace pyckpt::bzip2

#endif  // PYCKPT_CODEC_BZIP2_BLOCK_READER_H_
