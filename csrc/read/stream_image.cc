#include "read/stream_image.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <utility>

#include "base/anonymous_map.h"
#include "base/crc32.h"
#include "base/error.h"
#include "base/file_map.h"
#include "base/file_source.h"
#include "base/parallel.h"
#include "codec/decoder.h"

namespace pyckpt {
namespace {

constexpr std::uint64_t kUnitNbytes = std::uint64_t{1} << 20;

// A file that is not compressed, in place.
class MappedImage final : public StreamImage {
 public:
  MappedImage(const std::string& path, const ReadOptions& options)
      : StreamImage(options), map_(std::make_shared<FileMap>(path, FileMap::Writes::kToCopy)) {}

  std::uint64_t nbytes() const override { return map_->bytes().nbytes; }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }

 private:
  std::shared_ptr<FileMap> map_;
};

std::shared_ptr<AnonymousMap> NewMap(std::uint64_t nbytes) {
  auto map = std::make_shared<AnonymousMap>();
  if (nbytes != 0 && !map->Grow(nbytes)) {
    throw Error::Corrupt(
        "it claims " + std::to_string(nbytes) + " decompressed bytes, for which there is no room",
        0);
  }
  return map;
}

// A file that is not compressed, read unit by unit.
class ReadImage final : public StreamImage {
 public:
  ReadImage(const std::string& path, const ReadOptions& options)
      : StreamImage(options),
        source_(path),
        map_(NewMap(source_.nbytes())),
        present_((source_.nbytes() + kUnitNbytes - 1) / kUnitNbytes) {}

  std::uint64_t nbytes() const override { return source_.nbytes(); }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }

  void Expect(Extent extent) override { PreferHugePages(base() + extent.offset, extent.nbytes); }

  Loader NewLoader() override {
    const auto buffer = std::make_shared<Buffer>();
    return [this, buffer](std::size_t unit, bool keep) -> const std::uint8_t* {
      const Extent extent = UnitExtent(unit);
      std::uint8_t* place = base() + extent.offset;
      if (present_[unit] != 0) return place;
      if (!keep) place = buffer->Reserve(extent.nbytes);
      source_.Read(extent.offset, extent.nbytes, place);
      if (keep) present_[unit] = 1;
      return place;
    };
  }

 private:
  FileSource source_;
  std::shared_ptr<AnonymousMap> map_;
  std::vector<std::uint8_t> present_;  // bool; bytes, so that threads share none
};

// Blocks that tell where their bytes belong.
class BlockImage final : public StreamImage {
 public:
  BlockImage(std::unique_ptr<FileMap> file, std::unique_ptr<BlockStream> stream, const char* format,
             const ReadOptions& options)
      : StreamImage(options),
        file_(std::move(file)),
        stream_(std::move(stream)),
        format_(format),
        map_(NewMap(CheckedNbytes(stream_->blocks()))),
        nbytes_(CheckedNbytes(stream_->blocks())),
        present_(stream_->blocks().size()),
        decoded_(stream_->blocks().size()) {}

  const char* format() const override { return format_; }
  std::uint64_t nbytes() const override { return nbytes_; }

  std::uint64_t CodeNbytes(Extent extent) const override {
    double nbits = 0;
    const std::uint64_t end = extent.offset + extent.nbytes;
    for (std::uint64_t at = extent.offset; at < end;) {
      const CodeBlock& block = stream_->blocks()[UnitAt(at)];
      const std::uint64_t stop = std::min(end, block.raw_offset + block.raw_nbytes);
      nbits += static_cast<double>(block.code_nbits) * static_cast<double>(stop - at) /
               static_cast<double>(block.raw_nbytes);
      at = stop;
    }
    return static_cast<std::uint64_t>(nbits / 8);
  }

  std::vector<Damage> Finish() override {
    std::vector<Extent> missing;
    for (std::size_t i = 0; i < decoded_.size(); ++i) {
      if (present_[i] == kNever && UnitExtent(i).nbytes != 0) missing.push_back(UnitExtent(i));
    }
    std::vector<Damage> damages = Fill(missing, /*keep=*/false, /*checksums=*/false).damages;
    if (!damages.empty()) return damages;
    const std::unique_ptr<BlockDecoder> empty_decoder = stream_->NewDecoder();
    const std::unique_ptr<StreamChecker> checker = stream_->NewChecker();
    try {
      for (std::size_t i = 0; i < decoded_.size(); ++i) {
        if (present_[i] == kNever) {  // a block without bytes, which no extent asks for
          std::uint8_t none = 0;
          decoded_[i] = empty_decoder->Decode(file_->bytes(), stream_->blocks()[i], &none, 0);
        }
        checker->Append(stream_->blocks()[i], decoded_[i]);
      }
      checker->End();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kCorrupt) throw;
      damages.push_back({{0, nbytes_}, error.offset(), error.what()});
    }
    return damages;
  }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }

  void Expect(Extent extent) override { PreferHugePages(base() + extent.offset, extent.nbytes); }

  std::size_t UnitAt(std::uint64_t offset) const override {
    const auto& blocks = stream_->blocks();
    const auto after = std::upper_bound(
        blocks.begin(), blocks.end(), offset,
        [](std::uint64_t at, const CodeBlock& block) { return at < block.raw_offset; });
    return static_cast<std::size_t>(after - blocks.begin()) - 1;
  }

  Extent UnitExtent(std::size_t unit) const override {
    const CodeBlock& block = stream_->blocks()[unit];
    return {block.raw_offset, block.raw_nbytes};
  }

  Loader NewLoader() override {
    const std::shared_ptr<BlockDecoder> decoder = stream_->NewDecoder();
    const auto buffer = std::make_shared<Buffer>();
    return [this, decoder, buffer](std::size_t unit, bool keep) -> const std::uint8_t* {
      const CodeBlock& block = stream_->blocks()[unit];
      std::uint8_t* place = base() + block.raw_offset;
      if (present_[unit] == kHere) return place;
      if (!keep) place = buffer->Reserve(block.raw_nbytes);
      decoded_[unit] = decoder->Decode(file_->bytes(), block, place, block.raw_nbytes);
      if (decoded_[unit].raw_nbytes != block.raw_nbytes) {
        throw Error::Corrupt("a block is shorter than the file says", block.code_bit / 8);
      }
      present_[unit] = keep ? kHere : kChecked;
      return place;
    };
  }

 private:
  enum Presence : std::uint8_t { kNever, kChecked, kHere };

  static std::uint64_t CheckedNbytes(const std::vector<CodeBlock>& blocks) {
    std::uint64_t nbytes = 0;
    for (const CodeBlock& block : blocks) {
      if (block.raw_offset != nbytes || block.raw_nbytes > SIZE_MAX / 4 - nbytes) {
        throw Error::Corrupt("blocks do not follow one another", block.code_bit / 8);
      }
      nbytes += block.raw_nbytes;
    }
    return nbytes;
  }

  std::unique_ptr<FileMap> file_;
  std::unique_ptr<BlockStream> stream_;
  const char* format_;
  std::shared_ptr<AnonymousMap> map_;
  std::uint64_t nbytes_;
  std::vector<Presence> present_;
  std::vector<DecodedBlock> decoded_;  // of blocks that were
};

// A stream of which nobody knows the size before it is decoded.
class OrderedImage : public StreamImage {
 public:
  OrderedImage(std::unique_ptr<FileMap> file, const char* format, const ReadOptions& options)
      : StreamImage(options), file_(std::move(file)), format_(format) {}

  const char* format() const override { return format_; }
  std::uint64_t CodeNbytes(Extent /*extent*/) const override { return 0; }
  std::uint64_t nbytes() const override { return ended_ ? nbytes_ : kUnknownNbytes; }
  std::uint64_t placed_nbytes() const override { return nbytes_; }

  void Skip(std::uint64_t offset) override {
    while (nbytes_ < offset && !ended_) {
      const std::uint64_t before = nbytes_;
      Reach(std::min(offset, nbytes_ + kSkippedNbytes));
      DropPages(base() + before, std::min(offset, nbytes_) - before);
    }
  }

  std::vector<Damage> Finish() override {
    try {
      Skip(kUnknownNbytes);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kCorrupt) throw;
      return {{{nbytes_, kUnknownNbytes - nbytes_}, error.offset(), error.what()}};
    }
    return {};
  }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }
  bool counts_fill() const override { return false; }

  bool Reach(std::uint64_t end) override {
    if (end <= nbytes_) return true;
    if (failure_) throw Error(*failure_);
    try {
      while (nbytes_ < end && !ended_) ended_ = !Advance();
    } catch (const Error& error) {
      failure_ = error;
      throw;
    } catch (...) {
      // Whatever poll has thrown is not kept: it may refer to the image's user.
      failure_ = Error(ErrorKind::kArgument, "decoding was stopped before");
      throw;
    }
    return end <= nbytes_;
  }

  Extent UnitExtent(std::size_t unit) const override {
    const std::uint64_t offset = unit * kUnitNbytes;
    return {offset, std::min(kUnitNbytes, nbytes_ - offset)};
  }

  // Decodes a little more; false at the end.
  virtual bool Advance() = 0;

  // Room for so many more bytes, to be told by Grew() when they are there.
  std::uint8_t* Room(std::size_t nbytes) {
    // Pages that nobody has written to cost nothing: room may double.
    const std::size_t needed = nbytes_ + nbytes;
    if (needed > map_->capacity()) {
      if (map_.use_count() != 1) {  // growing would move what was taken
        throw Error(ErrorKind::kArgument, "bytes were taken before all that are wanted were there");
      }
      if (!map_->Grow(std::max(needed, 2 * map_->capacity()))) {
        throw Error::Corrupt(
            "there is no room for more than " + std::to_string(nbytes_) + " decompressed bytes", 0);
      }
    }
    return map_->data() + nbytes_;
  }
  void Grew(std::size_t nbytes) {
    nbytes_ += nbytes;
    Count(nbytes);
  }

  Span file() const { return file_->bytes(); }

 private:
  static constexpr std::uint64_t kSkippedNbytes = std::uint64_t{16} << 20;

  std::unique_ptr<FileMap> file_;
  const char* format_;
  std::shared_ptr<AnonymousMap> map_ = std::make_shared<AnonymousMap>();
  std::uint64_t nbytes_ = 0;  // decoded so far
  bool ended_ = false;
  std::optional<Error> failure_;
};

// Decoded by one thread.
class SequentialImage final : public OrderedImage {
 public:
  SequentialImage(std::unique_ptr<FileMap> file, const Decompressor& format,
                  const ReadOptions& options)
      : OrderedImage(std::move(file), format.name(), options),
        decoder_(format.OpenSequential(OrderedImage::file())) {}

 protected:
  bool Advance() override {
    const std::size_t n = decoder_->Read(Room(kUnitNbytes), kUnitNbytes);
    Grew(n);
    Poll();
    return n == kUnitNbytes;
  }

 private:
  std::unique_ptr<SequentialDecoder> decoder_;
};

// Blocks that are decoded in parallel, but whose sizes only decoding tells.
class UnplacedImage final : public OrderedImage {
 public:
  UnplacedImage(std::unique_ptr<FileMap> file, std::unique_ptr<BlockStream> stream,
                const char* format, const ReadOptions& options)
      : OrderedImage(std::move(file), format, options),
        stream_(std::move(stream)),
        checker_(stream_->NewChecker()),
        large_block_decoder_(stream_->NewDecoder()),
        wave_(kWaveOfThread * static_cast<std::size_t>(std::max(1, options.threads))) {}

 protected:
  // One block, so that what is skipped need not be kept for long.
  bool Advance() override {
    if (next_ == wave_end_) DecodeWave();
    const Slot& slot = wave_[next_ - wave_begin_];
    const CodeBlock& block = stream_->blocks()[next_++];
    if (checker_->Accepts(block)) Append(block, slot);
    if (next_ != stream_->blocks().size()) return true;
    checker_->End();
    return false;
  }

 private:
  // Long enough that threads seldom wait for the last of a wave.
  static constexpr std::size_t kWaveOfThread = 8;
  // Blocks hold 900 kB, but runs of equal bytes can make 46 MB of them.
  static constexpr std::uint64_t kMostWaitingNbytes = std::uint64_t{2} << 20;

  struct Slot {
    mutable Buffer raw;
    DecodedBlock decoded;
    bool is_large = false;     // so it was not decoded
    std::exception_ptr error;  // means nothing until the block is accepted
  };

  void DecodeWave() {
    wave_begin_ = next_;
    const std::size_t count = std::min(wave_.size(), stream_->blocks().size() - next_);
    RunParallel(
        count, options().threads,
        [this] {
          const std::shared_ptr<BlockDecoder> decoder = stream_->NewDecoder();
          return [this, decoder](std::size_t i) { Decode(decoder.get(), i); };
        },
        [this] { Poll(); });
    wave_end_ = next_ + count;
  }

  void Append(const CodeBlock& block, const Slot& slot) {
    if (slot.error) std::rethrow_exception(slot.error);
    DecodedBlock decoded = slot.decoded;
    if (slot.is_large) {
      const std::uint64_t nbytes = large_block_decoder_->RawNbytes(file(), block);
      decoded = large_block_decoder_->Decode(file(), block, Room(nbytes), nbytes);
      Poll();
    } else if (decoded.raw_nbytes != 0) {
      std::memcpy(Room(decoded.raw_nbytes), slot.raw.data(), decoded.raw_nbytes);
    }
    checker_->Append(block, decoded);
    Grew(decoded.raw_nbytes);
  }

  void Decode(BlockDecoder* decoder, std::size_t i) {
    Slot& slot = wave_[i];
    slot.error = nullptr;
    try {
      const CodeBlock& block = stream_->blocks()[next_ + i];
      const std::uint64_t nbytes = decoder->RawNbytes(file(), block);
      slot.is_large = nbytes > kMostWaitingNbytes;
      if (slot.is_large) return;
      slot.decoded = decoder->Decode(file(), block, slot.raw.Reserve(nbytes), nbytes);
    } catch (const Error&) {
      slot.error = std::current_exception();
    }
  }

  std::unique_ptr<BlockStream> stream_;
  std::unique_ptr<StreamChecker> checker_;
  std::unique_ptr<BlockDecoder> large_block_decoder_;
  std::vector<Slot> wave_;
  std::size_t next_ = 0;  // block; the slots are of those from wave_begin_ to wave_end_
  std::size_t wave_begin_ = 0;
  std::size_t wave_end_ = 0;
};

}  // namespace

std::shared_ptr<StreamImage> StreamImage::Open(const std::string& path,
                                               const ReadOptions& options) {
  auto file = std::make_unique<FileMap>(path, FileMap::Writes::kForbidden);
  const Decompressor* format = FindDecompressor(file->bytes());
  if (format == nullptr) {
    if (options.mapped) return std::make_shared<MappedImage>(path, options);
    return std::make_shared<ReadImage>(path, options);
  }
  std::unique_ptr<BlockStream> stream = format->OpenBlocks(file->bytes());
  if (!stream || stream->blocks().empty()) {
    return std::make_shared<SequentialImage>(std::move(file), *format, options);
  }
  if (stream->blocks().front().raw_offset == kUnknownNbytes) {
    return std::make_shared<UnplacedImage>(std::move(file), std::move(stream), format->name(),
                                           options);
  }
  return std::make_shared<BlockImage>(std::move(file), std::move(stream), format->name(), options);
}

bool StreamImage::Require(Extent extent) {
  if (extent.nbytes > kUnknownNbytes - 1 - extent.offset || !Reach(extent.offset + extent.nbytes)) {
    return false;
  }
  RequireAll({extent});
  return true;
}

void StreamImage::RequireAll(const std::vector<Extent>& extents) {
  const std::vector<Damage> damages = Fill(extents, /*keep=*/true, /*checksums=*/false).damages;
  if (!damages.empty()) throw Error::Corrupt(damages[0].message, damages[0].file_offset);
}

FillResult StreamImage::Fill(const std::vector<Extent>& extents, bool keep, bool checksums) {
  struct Part {
    std::size_t unit;
    std::size_t extent;
    std::uint32_t crc;
  };
  FillResult result;
  result.crcs.resize(extents.size());
  std::vector<Part> pieces;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const auto [offset, nbytes] = extents[i];
    if (nbytes == 0) continue;
    try {
      if (nbytes > kUnknownNbytes - 1 - offset || !Reach(offset + nbytes)) {
        result.damages.push_back({extents[i], 0, "the file ends too early"});
        continue;
      }
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kCorrupt) throw;
      result.damages.push_back({extents[i], error.offset(), error.what()});
      continue;
    }
    if (keep) Expect(extents[i]);
    const std::size_t last = UnitAt(offset + nbytes - 1);
    for (std::size_t unit = UnitAt(offset); unit <= last; ++unit) pieces.push_back({unit, i, 0});
  }
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const Part& a, const Part& b) { return a.unit < b.unit; });
  std::vector<std::size_t> starts;  // of the pieces of each unit
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (i == 0 || pieces[i].unit != pieces[i - 1].unit) starts.push_back(i);
  }
  starts.push_back(pieces.size());

  std::mutex mutex;  // guards the damages
  const auto load = [&](const Loader& loader, std::size_t at) {
    const Extent unit = UnitExtent(pieces[starts[at]].unit);
    const std::uint8_t* raw = nullptr;
    try {
      raw = loader(pieces[starts[at]].unit, keep);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kCorrupt) throw;
      const std::lock_guard<std::mutex> lock(mutex);
      result.damages.push_back({unit, error.offset(), error.what()});
      return;
    }
    for (std::size_t i = starts[at]; i < starts[at + 1]; ++i) {
      const Extent& whole = extents[pieces[i].extent];
      const std::uint64_t begin = std::max(whole.offset, unit.offset);
      const std::uint64_t end = std::min(whole.offset + whole.nbytes, unit.offset + unit.nbytes);
      if (checksums) pieces[i].crc = Crc32({raw + (begin - unit.offset), end - begin});
      if (counts_fill()) Count(end - begin);
    }
  };
  RunParallel(
      starts.size() - 1, options_.threads,
      [&] {
        const Loader loader = NewLoader();
        return [&load, loader](std::size_t at) { load(loader, at); };
      },
      [this] { Poll(); });

  // Pieces are in the order of units, so those of an extent in that of its bytes.
  for (const Part& piece : pieces) {
    const Extent& whole = extents[piece.extent];
    const Extent unit = UnitExtent(piece.unit);
    const std::uint64_t begin = std::max(whole.offset, unit.offset);
    const std::uint64_t end = std::min(whole.offset + whole.nbytes, unit.offset + unit.nbytes);
    std::uint32_t& crc = result.crcs[piece.extent];
    crc = begin == whole.offset ? piece.crc : Crc32Combine(crc, piece.crc, end - begin);
  }
  std::sort(result.damages.begin(), result.damages.end(),
            [](const Damage& a, const Damage& b) { return a.extent.offset < b.extent.offset; });
  return result;
}

const std::uint8_t* StreamImage::Bytes(Extent extent) const {
  const std::uint64_t placed = placed_nbytes();
  if (extent.offset > placed || extent.nbytes > placed - extent.offset) {
    throw Error(ErrorKind::kArgument, "bytes were asked for that are not there");
  }
  return Address(extent.offset);
}

void StreamImage::Forget(Extent extent) {
  const std::uint64_t placed = placed_nbytes();
  if (extent.offset >= placed || extent.nbytes == 0) return;
  DropPages(Address(extent.offset), std::min(extent.nbytes, placed - extent.offset));
}

std::shared_ptr<std::uint8_t> StreamImage::Take(Extent extent) {
  Bytes(extent);
  return {Address(extent.offset), [memory = memory(), nbytes = extent.nbytes](std::uint8_t* bytes) {
            if (nbytes != 0) DropPages(bytes, nbytes);
          }};
}

std::size_t StreamImage::UnitAt(std::uint64_t offset) const {
  return static_cast<std::size_t>(offset / kUnitNbytes);
}

Extent StreamImage::UnitExtent(std::size_t unit) const {
  const std::uint64_t offset = unit * kUnitNbytes;
  return {offset, std::min(kUnitNbytes, nbytes() - offset)};
}

StreamImage::Loader StreamImage::NewLoader() {
  return [this](std::size_t unit, bool /*keep*/) -> const std::uint8_t* {
    return base() + UnitExtent(unit).offset;
  };
}

void StreamImage::Poll() {
  if (options_.poll) options_.poll(done_nbytes_);
}

}  // namespace pyckpt
