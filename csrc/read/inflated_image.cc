#include "read/inflated_image.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/anonymous_map.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/file_map.h"
#include "base/supply.h"
#include "codec/decoder.h"
#include "codec/gzip/chunk_inflater.h"
#include "codec/gzip/format.h"
#include "codec/gzip/raw_inflater.h"
#include "container/zip_chunk_index.h"

namespace pyckpt {
namespace {

// Tensors use the memory as it is. torch aligns its own allocations to this.
constexpr std::uint64_t kAlignment = 64;

// The chunks of a record. One, if they are not known, or if they do not fit the record.
std::vector<DeflatedChunk> ChunksOf(const ZipEntry& entry) {
  std::vector<DeflatedChunk> chunks =
      DecodeZipChunkIndex(AsSpan(entry.chunk_index), entry.nbytes, entry.code_nbytes);
  const bool fits = std::all_of(chunks.begin(), chunks.end(), [](const DeflatedChunk& chunk) {
    return chunk.raw_nbytes <= kMostBlockNbytes &&
           chunk.raw_nbytes / gzip::kMostExpansion <= chunk.code_nbytes;
  });
  if (chunks.empty() || !fits) chunks.assign(1, {entry.nbytes, entry.code_nbytes});
  return chunks;
}

class InflatedImage final : public StreamImage {
 public:
  InflatedImage(std::shared_ptr<StreamImage> zip, const std::vector<ZipEntry>& entries,
                const std::vector<Extent>& code)
      : StreamImage(zip->options()), zip_(std::move(zip)), mapping_(zip_->Mapping()) {
    Count(zip_->done_nbytes());
    const std::vector<Extent> places = PlaceInflated(entries);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      AddRecord(ChunksOf(entries[i]), places[i], code[i]);
    }
    present_.resize(units_.size());
    map_ = NewMap(nbytes_);
  }

  std::uint64_t nbytes() const override { return nbytes_; }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }

  void ExpectUnits(Extent extent) override {
    PreferHugePages(base() + extent.offset, extent.nbytes);
  }

  void Prepare(const std::vector<Extent>& extents) override {
    if (mapping_) return;
    std::vector<Extent> code;
    for (const Extent& extent : extents) {
      if (extent.nbytes == 0) continue;
      for (std::size_t i = UnitAt(extent.offset); i < units_.size(); ++i) {
        if (units_[i].raw.offset >= extent.end()) break;
        code.push_back(units_[i].code);
      }
    }
    zip_->RequireAll(code);
  }

  void ExpectCode(const std::vector<std::size_t>& units) override {
    if (!mapping_ || mapping_->supply() == nullptr) return;
    std::vector<FileRange> ranges;
    for (const std::size_t unit : units) {
      if (present_[unit] == 0) ranges.push_back(FileRangeOf(unit));
    }
    if (!ranges.empty()) mapping_->supply()->Expect(ranges);
  }

  std::size_t UnitAt(std::uint64_t offset) const override {
    const auto after =
        std::upper_bound(units_.begin(), units_.end(), offset,
                         [](std::uint64_t at, const Unit& unit) { return at < unit.raw.offset; });
    return static_cast<std::size_t>(after - units_.begin()) - 1;
  }

  Extent UnitExtent(std::size_t unit) const override { return units_[unit].raw; }

  // Chunks are of different sizes here, so there are some to begin as others end.
  std::size_t most_in_turn() const override { return 4 * gzip::ChunkInflater::kMostInTurn; }

  Loader NewLoader() override {
    const auto worker = std::make_shared<Worker>();
    return [this, worker](std::vector<LoadedUnit>* units, bool keep) {
      Load(worker.get(), units, keep);
    };
  }

  bool code_is_in_file() const override { return mapping_ != nullptr; }

  bool Lose(std::size_t unit) override { return std::exchange(present_[unit], 0) != 0; }

 private:
  struct Unit {
    Extent raw;
    Extent code;
    bool is_last;  // of its record
  };

  struct Worker {
    gzip::ChunkInflater chunks;
    gzip::RawInflater one;
    Buffer buffer;
  };

  // Inflaters look at a few bytes behind a chunk.
  static constexpr std::uint64_t kBehindNbytes = 64;

  FileRange FileRangeOf(std::size_t unit) const {
    const Extent& code = units_[unit].code;
    const std::uint64_t end = code.end() + kBehindNbytes;
    return {code.offset, std::min<std::uint64_t>(end, mapping_->bytes().nbytes) - code.offset};
  }

  Held HoldCode(const std::vector<LoadedUnit>& units) const {
    if (!mapping_ || mapping_->supply() == nullptr) return {};
    std::vector<FileRange> ranges;
    for (const LoadedUnit& loaded : units) {
      if (present_[loaded.unit] == 0) ranges.push_back(FileRangeOf(loaded.unit));
    }
    return {mapping_->supply(), std::move(ranges)};
  }

  void Load(Worker* worker, std::vector<LoadedUnit>* units, bool keep) {
    const Held held = HoldCode(*units);
    std::vector<LoadedUnit*> missing;
    for (LoadedUnit& loaded : *units) {
      const Extent& raw = units_[loaded.unit].raw;
      loaded.raw = base() + raw.offset;
      if (present_[loaded.unit] != 0) continue;
      if (!keep && raw.nbytes > kMostBlockNbytes) {
        CheckLarge(worker, &loaded);
        continue;
      }
      missing.push_back(&loaded);
    }
    SetAddresses(missing, keep, &worker->buffer);
    Inflate(worker, missing);
    for (LoadedUnit* loaded : missing) {
      if (keep && !loaded->damage) present_[loaded->unit] = 1;
    }
  }

  // Chunks of our own are decoded in turn, and what that leaves over one after another.
  void Inflate(Worker* worker, const std::vector<LoadedUnit*>& missing) {
    std::vector<BlockTask> tasks;
    std::vector<LoadedUnit*> in_turn;
    for (LoadedUnit* loaded : missing) {
      const Span code = OwnCode(units_[loaded->unit]);
      if (missing.size() < 2 || code.nbytes == 0) {
        InflateAlone(worker, loaded);
        continue;
      }
      BlockTask& task = tasks.emplace_back();
      task.block.code_bit = static_cast<std::uint64_t>(code.data - Code().data) * 8;
      task.block.code_nbits = code.nbytes * 8;
      task.block.raw_nbytes = units_[loaded->unit].raw.nbytes;
      task.out = loaded->raw;
      in_turn.push_back(loaded);
    }
    const std::vector<BlockTask*> left = worker->chunks.Inflate(Code(), &tasks);
    for (std::size_t i = 0; i < tasks.size(); ++i) in_turn[i]->crc = tasks[i].decoded.check;
    for (const BlockTask* task : left) {
      LoadedUnit* loaded = in_turn[static_cast<std::size_t>(task - tasks.data())];
      loaded->crc.reset();
      InflateAlone(worker, loaded);
    }
  }

  void InflateAlone(Worker* worker, LoadedUnit* loaded) const {
    const Unit& unit = units_[loaded->unit];
    std::uint8_t* out = loaded->raw;
    NoteResult(unit.is_last ? worker->one.InflateStream(CodeOf(unit), out, unit.raw.nbytes)
                            : worker->one.InflateChunk(CodeOf(unit), out, unit.raw.nbytes),
               loaded);
  }

  void CheckLarge(Worker* worker, LoadedUnit* loaded) const {
    const Unit& unit = units_[loaded->unit];
    std::uint32_t crc = 0;
    const gzip::Inflated result = worker->one.InflateToCrc(CodeOf(unit), unit.raw.nbytes, &crc);
    loaded->raw = nullptr;
    loaded->crc = crc;
    NoteResult(result, loaded);
  }

  void NoteResult(gzip::Inflated result, LoadedUnit* loaded) const {
    if (result == gzip::Inflated::kWhole) return;
    loaded->raw = nullptr;
    loaded->damage =
        Error::Corrupt(result == gzip::Inflated::kDamaged
                           ? "its compressed data is damaged"
                           : "its compressed data has another size than the directory says",
                       units_[loaded->unit].code.offset);
  }

  void AddRecord(const std::vector<DeflatedChunk>& chunks, Extent place, Extent code) {
    nbytes_ = place.end();
    if (place.nbytes == 0) return;
    for (const auto& [raw_nbytes, code_nbytes] : chunks) {
      units_.push_back({{place.offset, raw_nbytes}, {code.offset, code_nbytes}, false});
      place.offset += raw_nbytes;
      code.offset += code_nbytes;
    }
    units_.back().is_last = true;
  }

  // The zip file, as far as it is in memory.
  Span Code() const {
    if (mapping_) return mapping_->bytes();
    return {zip_->Address(0), static_cast<std::size_t>(zip_->placed_nbytes())};
  }

  Span CodeOf(const Unit& unit) const { return {Code().data + unit.code.offset, unit.code.nbytes}; }

  // The code without a last block, if it is a chunk of ours. Else empty.
  Span OwnCode(const Unit& unit) const {
    constexpr std::size_t kEndNbytes = gzip::kShortestLastBlock.size();
    const Span code = CodeOf(unit);
    if (!unit.is_last) return code;
    const bool is_own = code.nbytes > kEndNbytes &&
                        std::equal(gzip::kShortestLastBlock.begin(), gzip::kShortestLastBlock.end(),
                                   code.data + code.nbytes - kEndNbytes);
    return {code.data, is_own ? code.nbytes - kEndNbytes : 0};
  }

  std::shared_ptr<StreamImage> zip_;
  std::shared_ptr<const FileMap> mapping_;  // of the zip file, or null
  std::vector<Unit> units_;                 // in the order of their places
  std::uint64_t nbytes_ = 0;
  std::shared_ptr<AnonymousMap> map_;
  std::vector<std::uint8_t> present_;  // booleans; vector<bool> would share bytes among threads
};

}  // namespace

std::vector<Extent> PlaceInflated(const std::vector<ZipEntry>& entries) {
  std::vector<Extent> places;
  places.reserve(entries.size());
  std::uint64_t end = 0;
  for (const ZipEntry& entry : entries) {
    const std::uint64_t offset = end + PaddingTo(end, kAlignment);
    if (offset > SIZE_MAX / 4 || entry.nbytes > SIZE_MAX / 4 - offset) {
      throw Error::Corrupt("its records claim more bytes than there is room for",
                           entry.header_offset);
    }
    places.push_back({offset, entry.nbytes});
    end = offset + entry.nbytes;
  }
  return places;
}

std::shared_ptr<StreamImage> NewInflatedImage(std::shared_ptr<StreamImage> zip,
                                              const std::vector<ZipEntry>& entries,
                                              const std::vector<Extent>& code) {
  return std::make_shared<InflatedImage>(std::move(zip), entries, code);
}

}  // namespace pyckpt
