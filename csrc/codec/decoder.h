// The interface of a compression format for reading. codec.h is the one for writing.
//
// If the blocks of a file can be found, each block is decoded on its own (BlockDecoder, in
// parallel), and the results are checked as one stream (StreamChecker, in order). Any other file is
// decoded from start to end by one SequentialDecoder.
//
// Files are not trusted. Every class that reads one keeps three rules. It throws Error::Corrupt,
// with an offset in the file, at the first bytes that no encoder writes. It reads nothing outside
// the file. It uses no more memory than its .h file documents, whatever sizes the file claims.
#ifndef PYCKPT_CODEC_DECODER_H_
#define PYCKPT_CODEC_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/supply.h"

namespace pyckpt {

inline constexpr std::uint64_t kUnknownNbytes = ~std::uint64_t{0};

// So many bytes of a file tell its format.
inline constexpr std::uint64_t kHeadNbytes = std::uint64_t{64} << 10;

// The largest block that is decoded in parallel, in raw bytes. Files with larger blocks are decoded
// from start to end. This bounds the memory of a worker.
inline constexpr std::uint64_t kMostBlockNbytes = std::uint64_t{256} << 20;

// A piece of code (compressed bytes) that can be decoded without any other piece.
struct CodeBlock {
  std::uint64_t code_bit = 0;    // where its code begins, in bits from the file's start
  std::uint64_t code_nbits = 0;  // bzip2: up to the next magic, even a false one

  // Place and size in the decoded stream. bzip2 files do not say them: raw_offset is known once all
  // blocks before this one are decoded, raw_nbytes once this one is.
  std::uint64_t raw_offset = kUnknownNbytes;
  std::uint64_t raw_nbytes = kUnknownNbytes;
};

// What the decoder found out about a block. The stream's checker needs it.
struct DecodedBlock {
  std::size_t raw_nbytes = 0;
  std::uint64_t end_bit = 0;  // where its code ends in the file
  std::uint32_t check = 0;    // the format's own CRC of the raw bytes; unused for xz and zstd
};

// One of several blocks that are decoded by one call.
struct BlockTask {
  CodeBlock block;              // its raw_nbytes is known
  std::uint8_t* out = nullptr;  // has room for block.raw_nbytes

  // The result. If there is damage, decoded and the bytes at out mean nothing.
  DecodedBlock decoded;
  std::optional<Error> damage;  // of kCorrupt
};

// Calls function. If it throws Corrupt, notes that as the task's damage and returns false.
template <typename Function>
bool Succeeds(BlockTask* task, const Function& function) {
  try {
    function();
    return true;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCorrupt) throw;
    task->damage = error;
    return false;
  }
}

// Each worker has one and is its only user. Keeps its memory between blocks.
class BlockDecoder {
 public:
  BlockDecoder() = default;
  BlockDecoder(const BlockDecoder&) = delete;
  BlockDecoder& operator=(const BlockDecoder&) = delete;
  virtual ~BlockDecoder() = default;

  // How many bytes Decode() will write. Free if the file says it. For bzip2 it is most of the work
  // of decoding; if the next call is Decode() of the same block, that work is not repeated.
  virtual std::uint64_t RawNbytes(Span file, const CodeBlock& block) {
    (void)file;
    return block.raw_nbytes;
  }

  // Decodes one block of file to out, which has room for capacity bytes, and compares the block's
  // own checksum if it has one. Throws an Error of kArgument if capacity is less than RawNbytes().
  // The contents of out are unspecified after an error.
  virtual DecodedBlock Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                              std::size_t capacity) = 0;

  // Decodes all tasks, with the same results as Decode(). Decoding is a chain of dependent steps
  // that leaves most of a core idle, so a decoder may take steps of several blocks in turn. Damage
  // of one block is noted in its task and does not touch the others. Other errors are thrown.
  virtual void DecodeInTurn(Span file, std::vector<BlockTask>* tasks);

 protected:
  // Decode(), with damage noted in the task.
  void DecodeTask(Span file, BlockTask* task);
};

// One per stream. All calls are made one at a time, in stream order, and are cheap.
class StreamChecker {
 public:
  StreamChecker() = default;
  StreamChecker(const StreamChecker&) = delete;
  StreamChecker& operator=(const StreamChecker&) = delete;
  virtual ~StreamChecker() = default;

  // False if this is no real block: its magic occurred by chance inside the code of an earlier
  // block. The caller then skips it and ignores its bytes and its error. Only bzip2 has false
  // blocks, and they are very rare.
  virtual bool Accepts(const CodeBlock& block) const {
    (void)block;
    return true;
  }

  // Adds an accepted block to the checksums. Throws Corrupt if the block does not follow the one
  // before it, or if it ends a stream whose checksum does not match.
  virtual void Append(const CodeBlock& block, const DecodedBlock& decoded) = 0;

  // Called after the last block. Throws Corrupt if a checksum or a length does not match, or if the
  // stream is incomplete.
  virtual void End() = 0;

  // How many bytes of the file belong to the format, zeros at the end included. Something else may
  // follow, as gzip, bzip2 and xz allow. Known after End().
  virtual std::uint64_t used_nbytes() const = 0;
};

// A file that can be decoded in parallel. The file's bytes must stay valid while this is used.
class BlockStream {
 public:
  BlockStream() = default;
  BlockStream(const BlockStream&) = delete;
  BlockStream& operator=(const BlockStream&) = delete;
  virtual ~BlockStream() = default;

  // In stream order. The list takes at most ten times as much memory as the file or 4 MB, whichever
  // is more.
  virtual const std::vector<CodeBlock>& blocks() const = 0;
  // How many blocks one call of DecodeInTurn() should get. More make it no faster.
  virtual std::size_t most_in_turn() const { return 1; }
  virtual std::unique_ptr<BlockDecoder> NewDecoder() const = 0;
  virtual std::unique_ptr<StreamChecker> NewChecker() const = 0;
};

// A file that is decoded from start to end. Used by one thread at a time.
class SequentialDecoder {
 public:
  SequentialDecoder() = default;
  SequentialDecoder(const SequentialDecoder&) = delete;
  SequentialDecoder& operator=(const SequentialDecoder&) = delete;
  virtual ~SequentialDecoder() = default;

  // Decodes the next nbytes bytes to out and returns how many it wrote. It returns fewer than
  // nbytes only at the end of the stream, and 0 after that. Once it returns fewer, it has compared
  // all checksums and lengths.
  virtual std::size_t Read(std::uint8_t* out, std::size_t nbytes) = 0;

  // The size of the whole stream, as the file claims it, if ReadWhole() would give it sooner than
  // Read() gives the rest. kUnknownNbytes if it would not, or if the file claims none.
  virtual std::uint64_t WholeNbytes() const { return kUnknownNbytes; }

  // Decodes the whole stream from its start to out, whatever Read() has given before, and compares
  // all checksums and lengths. nbytes is WholeNbytes(), and there is room for so many bytes at out.
  // Read() gives nothing more then. Returns false if the stream is damaged or has another size.
  // Then Read() goes on where it was, what it has given is at out, and other bytes are unspecified.
  virtual bool ReadWhole(std::uint8_t* out, std::size_t nbytes) {
    (void)out;
    (void)nbytes;
    return false;
  }

  // See StreamChecker. Known once Read() has returned fewer bytes than were wanted.
  virtual std::uint64_t used_nbytes() const = 0;
};

// Reads files of one format.
class Decompressor {
 public:
  Decompressor() = default;
  Decompressor(const Decompressor&) = delete;
  Decompressor& operator=(const Decompressor&) = delete;
  virtual ~Decompressor() = default;

  // Whether the first bytes of the file are those of this format. kHeadNbytes of them are there.
  virtual bool Recognizes(Span file) const = 0;
  // Null if the file does not say where its blocks are, has only one block, or has a block of more
  // than kMostBlockNbytes. What it reads of the file to find that out stays there; it needs all of
  // the file if that has no index at its end.
  virtual std::unique_ptr<BlockStream> OpenBlocks(const FileBytes& file) const = 0;
  virtual std::unique_ptr<SequentialDecoder> OpenSequential(Span file) const = 0;

  // Whether raw is an index that an encoder of this format adds to a tar. raw is what follows the
  // tar in the decoded stream.
  virtual bool IsIndex(Span raw) const {
    (void)raw;
    return false;
  }
};

}  // namespace pyckpt

#endif  // PYCKPT_CODEC_DECODER_H_
