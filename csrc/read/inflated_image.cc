#include "read/inflated_image.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/anonymous_map.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/file_map.h"
#include "codec/decoder.h"
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

  void Prepare(Extent extent) override {
    if (mapping_) return;
    std::vector<Extent> code;
    for (std::size_t i = UnitAt(extent.offset); i < units_.size(); ++i) {
      if (units_[i].raw.offset >= extent.end()) break;
      code.push_back(units_[i].code);
    }
    zip_->RequireAll(code);
  }

  std::size_t UnitAt(std::uint64_t offset) const override {
    const auto after =
        std::upper_bound(units_.begin(), units_.end(), offset,
                         [](std::uint64_t at, const Unit& unit) { return at < unit.raw.offset; });
    return static_cast<std::size_t>(after - units_.begin()) - 1;
  }

  Extent UnitExtent(std::size_t unit) const override { return units_[unit].raw; }

  Loader NewLoader() override {
    const auto inflater = std::make_shared<gzip::RawInflater>();
    const auto buffer = std::make_shared<Buffer>();
    return [this, inflater, buffer](std::vector<LoadedUnit>* units, bool keep) {
      for (LoadedUnit& loaded : *units) {
        try {
          Load(inflater.get(), buffer.get(), &loaded, keep);
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::kCorrupt) throw;
          loaded.damage = error;
        }
      }
    };
  }

  bool Lose(std::size_t unit) override { return std::exchange(present_[unit], 0) != 0; }

 private:
  struct Unit {
    Extent raw;
    Extent code;
    bool is_last;  // of its record
  };

  void Load(gzip::RawInflater* inflater, Buffer* buffer, LoadedUnit* loaded, bool keep) {
    const Unit& unit = units_[loaded->unit];
    std::uint8_t* place = base() + unit.raw.offset;
    if (present_[loaded->unit] == 0) {
      const Span code = Code(unit.code);
      if (!keep && unit.raw.nbytes > kMostBlockNbytes) {
        loaded->crc = inflater->Crc(code, unit.code.offset, unit.raw.nbytes);
        return;
      }
      if (!keep) place = buffer->Reserve(unit.raw.nbytes);
      if (unit.is_last) {
        inflater->InflateStream(code, unit.code.offset, place, unit.raw.nbytes);
      } else {
        inflater->InflateChunk(code, unit.code.offset, place, unit.raw.nbytes);
      }
      if (keep) present_[loaded->unit] = 1;
    }
    loaded->raw = place;
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

  Span Code(Extent extent) const {
    const std::uint8_t* bytes =
        mapping_ ? mapping_->bytes().data + extent.offset : zip_->Bytes(extent);
    return {bytes, extent.nbytes};
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
    if (offset < end || entry.nbytes > SIZE_MAX / 4 - offset) {
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
