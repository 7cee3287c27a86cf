// Deflate blocks for float tensors. Mantissas do not repeat, so all there is to
// gain lies in the byte frequencies, and in repeats of one element.
#ifndef PYCKPT_CODEC_GZIP_BLOCK_H_
#define PYCKPT_CODEC_GZIP_BLOCK_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "codec/gzip/plan.h"
#include "codec/huffman.h"
#include "codec/repeats.h"
#include "codec/runs.h"

namespace pyckpt::deflate {

// Bits fill each byte from its lowest bit up. Every write stores whole words, so the
// output needs kSlackNbytes of room behind its end.
class BitWriter {
 public:
  static constexpr std::size_t kSlackNbytes = 16;

  explicit BitWriter(std::uint8_t* out) : out_(out) {}

  // length <= 57; bits above length are zero.
  void Put(std::uint64_t bits, std::uint64_t length) {
    word_ |= bits << used_;
    used_ += length;
    StoreLe64(out_, word_);
    out_ += used_ >> 3;
    word_ >>= used_ & 56;  // it is below 64
    used_ &= 7;
  }

  // What a shift by a 64-bit number looks at: such a mask costs no instruction.
  static constexpr std::uint64_t kShiftMask = 63;

  static constexpr std::uint64_t kMostOfTwo = 56;

  // Both at once, a of 1 to kMostOfTwo bits and b of so many at most: fewer instructions, without
  // a branch on how long they are together. Of the lengths only the lowest eight bits count.
  // Cpu::NbytesIn(n) is n / 8 for the lowest eight bits of n.
  template <typename Cpu>
  void PutTwo(std::uint64_t a_bits, std::uint64_t a_length, std::uint64_t b_bits,
              std::uint64_t b_length) {
    word_ |= a_bits << used_;
    const std::uint64_t between = used_ + a_length;  // 1 to 63
    StoreLe64(out_, word_ | b_bits << (between & kShiftMask));
    StoreLe64(out_ + 8, b_bits >> (-between & kShiftMask));
    const std::uint64_t end = between + b_length;
    out_ += Cpu::NbytesIn(end);
    word_ = *out_;  // all above its bits is zero
    used_ = end & 7;
  }

  bool aligned() const { return used_ == 0; }

  // Fills the last byte with zeros and returns the end.
  std::uint8_t* Align() {
    if (used_ != 0) Put(0, 8 - used_);
    return out_;
  }

 private:
  std::uint8_t* out_;
  std::uint64_t word_ = 0;
  std::uint64_t used_ = 0;
};

// Room that dynamic blocks may need, whatever their codes.
std::size_t DynamicBlocksBound(std::size_t raw_nbytes, std::size_t blocks);

// The code of a dynamic block, for the part of a chunk that a plan says. It comes
// from the plan's sample: symbols that it missed get codes all the same.
class BlockCode {
 public:
  // next is the first repeat that may reach behind the block's begin.
  BlockCode(const BlockPlan& plan, const std::vector<Repeat>& repeats, std::size_t next);

  // The size of the block, as the sample foretells it.
  std::uint64_t nbits() const { return nbits_; }

  void WriteHeader(BitWriter* writer) const;
  const HuffmanCode& literal(std::size_t byte) const { return literals_[byte]; }
  void PutMatch(std::size_t nbytes, std::size_t distance, BitWriter* writer) const;
  void PutEnd(BitWriter* writer) const;

 private:
  // How the header writes a code's length, or a run of equal ones.
  struct LengthRun {
    std::uint8_t symbol;
    std::uint8_t extra;
    std::uint8_t extra_nbits;
  };
  static std::vector<LengthRun> RunsOf(const std::vector<std::uint8_t>& lengths);

  std::vector<HuffmanCode> literals_;   // and end of block, and lengths
  std::vector<HuffmanCode> distances_;  // one unused if there are no matches
  std::vector<LengthRun> length_runs_;  // the lengths of both
  std::vector<HuffmanCode> lengths_;    // the code that those are written in
  std::uint64_t nbits_ = 0;
};

// Writes dynamic blocks; keeps its tables from block to block.
class BlockWriter {
 public:
  // One block, not the last of its stream. *next as in BlockCode; it moves on.
  void Write(const std::vector<Run>& runs, const BlockPlan& plan, const BlockCode& code,
             const std::vector<Repeat>& repeats, std::size_t* next, BitWriter* writer);

 private:
  // Code above, length in the low eight bits.
  std::array<std::uint32_t, 256> table_{};
  std::vector<std::uint32_t> pair_table_;  // for two bytes at once, low one first
};

// An empty stored block: what follows starts on a byte. Returns the end.
std::uint8_t* WriteEmptyBlock(BitWriter* writer);

// Stored blocks, the first of which starts in the writer's last byte: 5 bytes
// for each 65,535, or what is left of them in each run, and one.
std::size_t StoredBlocksBound(std::size_t raw_nbytes, std::size_t runs);
std::uint8_t* WriteStoredBlocks(Span raw, BitWriter* writer);

}  // namespace pyckpt::deflate

#endif  // PYCKPT_CODEC_GZIP_BLOCK_H_
