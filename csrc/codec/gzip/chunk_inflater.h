// Decodes chunks of gzip archives, several in turn by one thread. Made for what our encoder writes
// of floats: blocks of literals with short codes, and few matches. These take a third of
// libdeflate's time.
//
// libdeflate is faster where matches are frequent. It starts only at the beginning of a chunk, so a
// chunk is left to it once a block with frequent matches comes, unless most of the chunk is
// decoded.
#ifndef PYCKPT_CODEC_GZIP_CHUNK_INFLATER_H_
#define PYCKPT_CODEC_GZIP_CHUNK_INFLATER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/decoder.h"
#include "codec/gzip/bit_reader.h"
#include "codec/gzip/block_header.h"
#include "codec/gzip/literal_rounds.h"
#include "codec/gzip/symbol_decoder.h"

namespace pyckpt::gzip {

// One per worker. Takes 70 kB of memory.
class ChunkInflater {
 public:
  // How many chunks are decoded in turn. Of more, others begin as the first ones end.
  static constexpr std::size_t kMostInTurn = kLanes;

  // Decodes chunks of file: deflate blocks without a last one, from a byte to a byte. Sets decoded,
  // with the CRC-32, of those that are whole. Returns the others, whose bytes at out are
  // unspecified then: they are damaged, or left to libdeflate, or have what our encoder does not
  // write, as a last block or incomplete codes.
  std::vector<BlockTask*> Inflate(Span file, std::vector<BlockTask>* tasks);

 private:
  enum class State {
    kInBlock,  // of symbols
    kBetween,  // a header follows, or the end
    kDone,
    kRefused,
  };

  // A chunk that is being decoded. Its lane has the literals of the open block, and is the one to
  // know how far out is written.
  struct Chunk {
    BlockTask* task = nullptr;
    State state = State::kBetween;
    BitReader reader;
    std::uint8_t* end = nullptr;  // of the room at task->out
    std::uint8_t* summed = nullptr;
    std::uint32_t crc = 0;   // of the bytes before summed
    SymbolDecoder literals;  // and end of block, and lengths of matches
    SymbolDecoder distances;
    unsigned literal_nbits = 0;  // the longest code that the block's table has to hold

    State OpenNext(BlockHeader* header, LiteralLane* lane);
    State OpenSymbols(const BlockHeader& header, LiteralLane* lane);
    // Whether it would take longer to begin again with libdeflate than to go on, whatever comes.
    bool NearlyDone(const LiteralLane& lane) const;
    State CopyStored(std::size_t nbytes, LiteralLane* lane);
    // Decodes symbols of any kind: this many literals, and all matches before, between and behind
    // them.
    State Walk(std::size_t most_literals, LiteralLane* lane);
    // Returns false if there is no such match.
    bool CopyMatch(std::size_t length_symbol, LiteralLane* lane);
    // How many rounds its code and its room surely last.
    std::size_t RoundsLeft(const LiteralLane& lane) const;
    void Sum(const LiteralLane& lane);
  };

  void Start(Span file, BlockTask* task);
  // Lets every chunk open its next block of symbols. Those that have none leave their lanes.
  void OpenBlocks(std::vector<BlockTask*>* refused);
  void DecodeLiterals(Span file);

  std::size_t in_use_ = 0;  // the first ones of both
  std::array<Chunk, kLanes> chunks_;
  std::array<LiteralLane, kLanes> lanes_;
  BlockHeader header_;
};

}  // namespace pyckpt::gzip

#endif  // PYCKPT_CODEC_GZIP_CHUNK_INFLATER_H_
