// What a compression format offers to those who read: the mirror of codec.h.
//
// Where a file tells where its blocks of code lie, each is decoded on its own
// (BlockDecoder, in parallel), and the results are tied together again
// (StreamChecker, in order). Any other file is the work of one
// SequentialDecoder.
//
// A file is whatever somebody wrote. Whatever reads one here throws
// Error::Corrupt, with an offset in the file, as soon as its bytes are none that
// an encoder writes; reads nothing outside the file; and needs no more memory
// than its header says, whatever the file asks for.
#ifndef PYCKPT_CODEC_DECODER_H_
#define PYCKPT_CODEC_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

inline constexpr std::uint64_t kUnknownNbytes = ~std::uint64_t{0};

// No block is larger: files that have larger ones are decoded from start to end,
// so a worker's memory has this bound.
inline constexpr std::uint64_t kMostBlockNbytes = std::uint64_t{256} << 20;

// A piece of code that refers to no other.
struct CodeBlock {
  std::uint64_t code_bit = 0;    // where its code begins, in bits from the file's start
  std::uint64_t code_nbits = 0;  // bzip2: as far as the next block's magic, true or false

  // In the decoded stream. bzip2 tells neither; they are known once all blocks
  // before are decoded, and this one is.
  std::uint64_t raw_offset = kUnknownNbytes;
  std::uint64_t raw_nbytes = kUnknownNbytes;
};

// What its decoder learnt of a block, for the stream's checker.
struct DecodedBlock {
  std::size_t raw_nbytes = 0;
  std::uint64_t end_bit = 0;  // where its code ends in the file
  std::uint32_t check = 0;    // the format's own: a CRC of the raw bytes, or of no meaning
};

// One per worker, used by that worker alone; keeps its memory from block to block.
class BlockDecoder {
 public:
  BlockDecoder() = default;
  BlockDecoder(const BlockDecoder&) = delete;
  BlockDecoder& operator=(const BlockDecoder&) = delete;
  virtual ~BlockDecoder() = default;

  // How many bytes Decode() will write. Costs nothing where the file says so.
  // For bzip2 it is most of the work, which a Decode() of the same block, if that
  // is the next call, need not do again.
  virtual std::uint64_t RawNbytes(Span file, const CodeBlock& block) {
    (void)file;
    return block.raw_nbytes;
  }

  // Decodes one block of file to out, which has room for capacity bytes, and
  // compares the block's own checksum if it has one. Less room than RawNbytes()
  // is an Error of kArgument. What is in out after an error is unspecified.
  virtual DecodedBlock Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                              std::size_t capacity) = 0;
};

// One per stream. Called one at a time and in stream order; costs little.
class StreamChecker {
 public:
  StreamChecker() = default;
  StreamChecker(const StreamChecker&) = delete;
  StreamChecker& operator=(const StreamChecker&) = delete;
  virtual ~StreamChecker() = default;

  // False for a block that is none, since another one's code lies there: skip
  // it, its bytes and its error too. Only bzip2 has such, and hardly ever.
  virtual bool Accepts(const CodeBlock& block) const {
    (void)block;
    return true;
  }

  // Takes an accepted block into the checksums. Throws Corrupt where the block
  // does not follow the one before, or ends a stream whose checksum does not match.
  virtual void Append(const CodeBlock& block, const DecodedBlock& decoded) = 0;

  // After the last block. Throws Corrupt where checksums or lengths do not match,
  // or where the stream is not whole.
  virtual void End() = 0;
};

// A file that can be decoded in parallel. Valid as long as the file's bytes are.
class BlockStream {
 public:
  BlockStream() = default;
  BlockStream(const BlockStream&) = delete;
  BlockStream& operator=(const BlockStream&) = delete;
  virtual ~BlockStream() = default;

  // In stream order. At most ten times as much memory as the file, or 4 MB.
  virtual const std::vector<CodeBlock>& blocks() const = 0;
  virtual std::unique_ptr<BlockDecoder> NewDecoder() const = 0;
  virtual std::unique_ptr<StreamChecker> NewChecker() const = 0;
};

// A file that is decoded from its start to its end. Used by one thread at a time.
class SequentialDecoder {
 public:
  SequentialDecoder() = default;
  SequentialDecoder(const SequentialDecoder&) = delete;
  SequentialDecoder& operator=(const SequentialDecoder&) = delete;
  virtual ~SequentialDecoder() = default;

  // Decodes the next nbytes to out; fewer, and 0 from then on, at the end alone.
  // All checksums and lengths have been compared once it returns fewer.
  virtual std::size_t Read(std::uint8_t* out, std::size_t nbytes) = 0;
};

// How files of one format are read.
class Decompressor {
 public:
  Decompressor() = default;
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;
  virtual ~Decompressor() = default;

  // Whether the file begins as the format does.
  virtual bool Recognizes(Span file) const = 0;
  // None where the file tells nothing of its blocks, has but one, or has one of
  // more than kMostBlockNbytes.
  virtual std::unique_ptr<BlockStream> OpenBlocks(Span file) const = 0;
  virtual std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const = 0;

  // Whether raw, the bytes of a stream that follow its contents, are an index that our own
  // encoder added.
  virtual bool IsIndex(Span raw) const {
    (void)raw;
    return false;
  }
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_DECODER_H_
