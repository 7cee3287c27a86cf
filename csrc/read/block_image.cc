#include "read/block_image.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/anonymous_map.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/supply.h"

namespace pyckpt {
namespace {

class BlockImage final : public StreamImage {
 public:
  BlockImage(std::unique_ptr<FileMap> file, std::unique_ptr<BlockStream> stream,
             const Format& format, const ReadOptions& options)
      : StreamImage(options),
        file_(std::move(file)),
        stream_(std::move(stream)),
        format_(format),
        map_(NewMap(CheckedNbytes(stream_->blocks()))),
        nbytes_(CheckedNbytes(stream_->blocks())),
        present_(stream_->blocks().size()),
        decoded_(stream_->blocks().size()) {}

  const Format* format() const override { return &format_; }
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
        if (present_[i] == kNever) {  // a block without bytes: no extent contains it
          const Held held =
              file_->supply() ? Held(file_->supply(), {CodeOf(stream_->blocks()[i])}) : Held();
          std::uint8_t none = 0;
          decoded_[i] = empty_decoder->Decode(file_->bytes(), stream_->blocks()[i], &none, 0);
        }
        checker->Append(stream_->blocks()[i], decoded_[i]);
      }
      checker->End();
      trailing_nbytes_ = file_->bytes().nbytes - checker->used_nbytes();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kCorrupt) throw;
      damages.push_back({{0, nbytes_}, error.offset(), error.what()});
    }
    return damages;
  }

  std::uint64_t trailing_nbytes() const override { return trailing_nbytes_; }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }

  void ExpectUnits(Extent extent) override {
    PreferHugePages(base() + extent.offset, extent.nbytes);
  }

  void ExpectCode(const std::vector<std::size_t>& units) override {
    if (file_->supply() == nullptr) return;
    std::vector<FileRange> ranges;
    for (const std::size_t unit : units) {
      if (present_[unit] != kHere) ranges.push_back(CodeOf(stream_->blocks()[unit]));
    }
    if (!ranges.empty()) file_->supply()->Expect(ranges);
  }

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

  std::size_t most_in_turn() const override { return stream_->most_in_turn(); }

  Loader NewLoader() override {
    const std::shared_ptr<BlockDecoder> decoder = stream_->NewDecoder();
    const auto buffer = std::make_shared<Buffer>();
    return [this, decoder, buffer](std::vector<LoadedUnit>* units, bool keep) {
      Load(decoder.get(), buffer.get(), units, keep);
    };
  }

  bool Lose(std::size_t unit) override {
    if (present_[unit] == kNever) return false;
    present_[unit] = kChecked;
    return true;
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

  // Decoders look at a few bytes behind a block.
  static constexpr std::uint64_t kBehindNbytes = 64;

  FileRange CodeOf(const CodeBlock& block) const {
    const std::uint64_t begin = block.code_bit / 8;
    const std::uint64_t end = (block.code_bit + block.code_nbits + 7) / 8 + kBehindNbytes;
    return {begin, std::min<std::uint64_t>(end, file_->bytes().nbytes) - begin};
  }

  Held HoldCode(const std::vector<BlockTask>& tasks) const {
    if (file_->supply() == nullptr) return {};
    std::vector<FileRange> ranges;
    ranges.reserve(tasks.size());
    for (const BlockTask& task : tasks) ranges.push_back(CodeOf(task.block));
    return {file_->supply(), std::move(ranges)};
  }

  void Load(BlockDecoder* decoder, Buffer* buffer, std::vector<LoadedUnit>* units, bool keep) {
    std::vector<LoadedUnit*> missing;
    for (LoadedUnit& loaded : *units) {
      loaded.raw = base() + stream_->blocks()[loaded.unit].raw_offset;
      if (present_[loaded.unit] != kHere) missing.push_back(&loaded);
    }
    SetAddresses(missing, keep, buffer);
    std::vector<BlockTask> tasks(missing.size());
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      tasks[i].block = stream_->blocks()[missing[i]->unit];
      tasks[i].out = missing[i]->raw;
    }
    const Held held = HoldCode(tasks);
    decoder->DecodeInTurn(file_->bytes(), &tasks);
    for (std::size_t i = 0; i < tasks.size(); ++i) Note(tasks[i], keep, missing[i]);
  }

  void Note(const BlockTask& task, bool keep, LoadedUnit* loaded) {
    loaded->damage = task.damage;
    if (!task.damage && task.decoded.raw_nbytes != task.block.raw_nbytes) {
      loaded->damage =
          Error::Corrupt("a block is shorter than the file says", task.block.code_bit / 8);
    }
    loaded->raw = loaded->damage ? nullptr : task.out;
    if (loaded->damage) return;
    decoded_[loaded->unit] = task.decoded;
    present_[loaded->unit] = keep ? kHere : kChecked;
  }

  std::unique_ptr<FileMap> file_;
  std::unique_ptr<BlockStream> stream_;
  const Format& format_;
  std::shared_ptr<AnonymousMap> map_;
  std::uint64_t nbytes_;
  std::uint64_t trailing_nbytes_ = 0;
  std::vector<Presence> present_;
  std::vector<DecodedBlock> decoded_;  // meaningless for blocks that were not decoded
};

}  // namespace

std::shared_ptr<StreamImage> NewBlockImage(std::unique_ptr<FileMap> file,
                                           std::unique_ptr<BlockStream> stream,
                                           const Format& format, const ReadOptions& options) {
  return std::make_shared<BlockImage>(std::move(file), std::move(stream), format, options);
}

}  // namespace pyckpt
