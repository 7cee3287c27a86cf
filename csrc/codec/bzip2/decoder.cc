#include "codec/bzip2/decoder.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "base/crc32.h"
#include "base/error.h"
#include "codec/bzip2/bits.h"
#include "codec/bzip2/block_reader.h"
#include "codec/bzip2/format.h"

namespace pyckpt::bzip2 {
namespace {

constexpr std::size_t kHeaderNbytes = 4;

// "BZh", and the block size in units of 100 kB.
bool HasHeader(Span file, std::uint64_t at) {
  constexpr std::string_view kStart = "BZh";
  return file.nbytes - at >= kHeaderNbytes &&
         std::equal(kStart.begin(), kStart.end(), reinterpret_cast<const char*>(file.data + at)) &&
         file.data[at + 3] >= '1' && file.data[at + 3] <= '9';
}

// Where blocks seem to begin, in bits. At whatever bit a magic begins, it covers at least five
// whole bytes, that is four pairs of neighbouring bytes. One of these pairs begins at a byte offset
// that is a multiple of four. So only the pairs at these offsets are looked up in a table; few of
// them need a closer look.
std::vector<std::uint64_t> FindMagics(Span file) {
  constexpr std::size_t kStride = 4;
  std::vector<bool> suspicious(std::size_t{1} << 16);
  for (unsigned bit = 0; bit < kMagicBits - 16 + 1; ++bit) {
    suspicious[kBlockMagic >> bit & 0xFFFF] = true;
  }
  std::vector<std::uint64_t> found;
  const std::uint64_t nbits = std::uint64_t{file.nbytes} * 8;
  std::uint64_t next = 0;  // no magic was looked for from this bit on
  for (std::size_t at = 0; at + 1 < file.nbytes; at += kStride) {
    const std::size_t pair = std::size_t{file.data[at]} << 8 | file.data[at + 1];
    if (!suspicious[pair]) continue;
    const std::uint64_t end = std::uint64_t{at} * 8 + 1;
    const std::uint64_t before = kMagicBits - 16;
    for (std::uint64_t bit = std::max(next, end - std::min(end, before + 1)); bit < end; ++bit) {
      if (bit + kMagicBits > nbits) break;
      if (BitReader(file, bit).Peek(kMagicBits) == kBlockMagic) found.push_back(bit);
    }
    next = end;
  }
  return found;
}

// Follows a file's streams from block to block.
class Bzip2Checker final : public StreamChecker {
 public:
  explicit Bzip2Checker(Span file) : file_(file) { Continue(StartStream(0)); }

  // The bit at which the next block begins. There is no next block once ended() is true.
  std::uint64_t next_bit() const { return next_bit_; }
  bool ended() const { return ended_; }

  bool Accepts(const CodeBlock& block) const override {
    return !ended_ && block.code_bit >= next_bit_;
  }

  void Append(const CodeBlock& block, const DecodedBlock& decoded) override {
    if (block.code_bit != next_bit_) {
      throw Error::Corrupt("bzip2: no block begins here", next_bit_ / 8);
    }
    crc_ = (crc_ << 1 | crc_ >> 31) ^ decoded.check;
    Continue(decoded.end_bit);
  }

  void End() override {
    if (!ended_) throw Error::Corrupt("bzip2: no block begins here", next_bit_ / 8);
  }
  std::uint64_t used_nbytes() const override { return used_nbytes_; }

 private:
  // bit is the end of a block or of a header. Moves from there to the next block, over ends of
  // streams, or to the end of the file.
  void Continue(std::uint64_t bit) {
    for (;;) {
      next_bit_ = bit;
      BitReader bits(file_, bit);
      const std::uint64_t magic = bits.Read(kMagicBits);
      if (magic == kBlockMagic) return;
      if (magic != kEndMagic) {
        throw Error::Corrupt("bzip2: neither a block nor an end mark begins here", bit / 8);
      }
      const std::uint64_t crc = bits.Read(kCrcBits);
      if (bits.overrun()) throw Error::Corrupt("bzip2: the file is cut off", file_.nbytes);
      if (crc != crc_) throw Error::Corrupt("bzip2: a stream's checksum does not match", bit / 8);
      const std::uint64_t end = (bits.bit() + 7) / 8;
      ended_ = !HasHeader(file_, end);
      if (ended_) {
        used_nbytes_ = IsZero(file_, end) ? file_.nbytes : end;
        return;
      }
      bit = StartStream(end);
    }
  }

  // Checks the header of the stream that begins at byte at. Returns the bit after the header.
  std::uint64_t StartStream(std::uint64_t at) {
    if (!HasHeader(file_, at)) throw Error::Corrupt("bzip2: no stream begins here", at);
    crc_ = 0;
    return (at + kHeaderNbytes) * 8;
  }

  Span file_;
  std::uint64_t next_bit_ = 0;
  std::uint32_t crc_ = 0;
  bool ended_ = false;
  std::uint64_t used_nbytes_ = 0;
};

class Bzip2BlockDecoder final : public BlockDecoder {
 public:
  std::uint64_t RawNbytes(Span file, const CodeBlock& block) override {
    bit_ = kUnknownNbytes;
    reader_.Read(file, block.code_bit);
    bit_ = block.code_bit;
    return reader_.raw_nbytes();
  }

  DecodedBlock Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                      std::size_t capacity) override {
    if (bit_ != block.code_bit) RawNbytes(file, block);
    bit_ = kUnknownNbytes;  // the next block may be in a different file
    const auto nbytes = static_cast<std::size_t>(reader_.raw_nbytes());
    if (capacity < nbytes) throw Error(ErrorKind::kArgument, "bzip2: a block needs more room");
    reader_.Expand(out);
    if (Crc32MsbFirst({out, nbytes}) != reader_.crc()) {
      throw Error::Corrupt("bzip2: a block's checksum does not match", block.code_bit / 8);
    }
    return {nbytes, reader_.end_bit(), reader_.crc()};
  }

 private:
  BlockReader reader_;
  std::uint64_t bit_ = kUnknownNbytes;  // of the block in the reader
};

class Bzip2Blocks final : public BlockStream {
 public:
  Bzip2Blocks(Span file, const std::vector<std::uint64_t>& bits) : file_(file) {
    blocks_.resize(bits.size());
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const std::uint64_t end = i + 1 < bits.size() ? bits[i + 1] : std::uint64_t{file.nbytes} * 8;
      blocks_[i].code_bit = bits[i];
      blocks_[i].code_nbits = end - bits[i];
    }
  }

  const std::vector<CodeBlock>& blocks() const override { return blocks_; }
  std::unique_ptr<BlockDecoder> NewDecoder() const override {
    return std::make_unique<Bzip2BlockDecoder>();
  }
  std::unique_ptr<StreamChecker> NewChecker() const override {
    return std::make_unique<Bzip2Checker>(file_);
  }

 private:
  Span file_;
  std::vector<CodeBlock> blocks_;
};

class Bzip2Decoder final : public SequentialDecoder {
 public:
  explicit Bzip2Decoder(Span file) : file_(file), checker_(file) {}

  std::size_t Read(std::uint8_t* out, std::size_t nbytes) override {
    std::size_t done = 0;
    while (done < nbytes && (given_ < decoded_ || !checker_.ended())) {
      if (given_ == decoded_) ReadBlock();
      const std::size_t n = std::min(nbytes - done, decoded_ - given_);
      std::copy_n(raw_.data() + given_, n, out + done);
      given_ += n;
      done += n;
    }
    return done;
  }
  std::uint64_t used_nbytes() const override { return checker_.used_nbytes(); }

 private:
  void ReadBlock() {
    CodeBlock block;
    block.code_bit = checker_.next_bit();
    const auto nbytes = static_cast<std::size_t>(decoder_.RawNbytes(file_, block));
    checker_.Append(block, decoder_.Decode(file_, block, raw_.Reserve(nbytes), nbytes));
    given_ = 0;
    decoded_ = nbytes;
  }

  Span file_;
  Bzip2Checker checker_;
  Bzip2BlockDecoder decoder_;
  Buffer raw_;
  std::size_t given_ = 0;  // bytes of raw_ that were returned
  std::size_t decoded_ = 0;
};

}  // namespace

bool Bzip2Decompressor::Recognizes(Span file) const { return HasHeader(file, 0); }

std::unique_ptr<BlockStream> Bzip2Decompressor::OpenBlocks(const FileBytes& stored) const {
  stored.NeedAll();
  const Span file = stored.bytes();
  const std::vector<std::uint64_t> bits = FindMagics(file);
  if (bits.size() < 2) return nullptr;
  return std::make_unique<Bzip2Blocks>(file, bits);
}

std::unique_ptr<SequentialDecoder> Bzip2Decompressor::OpenSequential(Span file) const {
  return std::make_unique<Bzip2Decoder>(file);
}

}  // namespace pyckpt::bzip2
