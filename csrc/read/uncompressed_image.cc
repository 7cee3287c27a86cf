#include "read/uncompressed_image.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "base/anonymous_map.h"
#include "base/bytes.h"
#include "base/file_map.h"
#include "base/file_source.h"
#include "base/supply.h"

namespace pyckpt {
namespace {

class MappedImage final : public StreamImage {
 public:
  MappedImage(const OpenFile& file, const ReadOptions& options)
      : StreamImage(options), map_(std::make_shared<FileMap>(file, FileMap::Writes::kToCopy)) {
    map_->file_bytes().NeedAll();
  }

  std::uint64_t nbytes() const override { return map_->bytes().nbytes; }
  std::shared_ptr<const FileMap> Mapping() override { return map_; }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }

 private:
  std::shared_ptr<FileMap> map_;
};

class ReadImage final : public StreamImage {
 public:
  ReadImage(const std::shared_ptr<const OpenFile>& file, const ReadOptions& options)
      : StreamImage(options),
        source_(file),
        map_(NewMap(source_.nbytes())),
        present_((source_.nbytes() + kUnitNbytes - 1) / kUnitNbytes) {}

  std::uint64_t nbytes() const override { return source_.nbytes(); }
  std::shared_ptr<const FileMap> Mapping() override {
    return std::make_shared<FileMap>(source_.file(), FileMap::Writes::kForbidden);
  }

 protected:
  std::uint8_t* base() const override { return map_->data(); }
  std::shared_ptr<const void> memory() const override { return map_; }

  void ExpectUnits(Extent extent) override {
    PreferHugePages(base() + extent.offset, extent.nbytes);
  }

  void ExpectCode(const std::vector<std::size_t>& units) override {
    if (supply() == nullptr) return;
    std::vector<FileRange> ranges;
    for (const std::size_t unit : units) {
      if (present_[unit] == 0) ranges.push_back(FileRangeOf(unit));
    }
    if (!ranges.empty()) supply()->Expect(ranges);
  }

  // So that a supply is asked less often.
  std::size_t most_in_turn() const override { return supply() == nullptr ? 1 : 4; }

  Loader NewLoader() override {
    const auto buffer = std::make_shared<Buffer>();
    return [this, buffer](std::vector<LoadedUnit>* units, bool keep) {
      const Held held = HoldUnits(*units);
      for (LoadedUnit& loaded : *units) loaded.raw = base() + UnitExtent(loaded.unit).offset;
      std::vector<LoadedUnit*> missing;
      for (LoadedUnit& loaded : *units) {
        if (present_[loaded.unit] == 0) missing.push_back(&loaded);
      }
      SetAddresses(missing, keep, buffer.get());
      for (const LoadedUnit* loaded : missing) Load(*loaded, keep);
    };
  }

  bool Lose(std::size_t unit) override {
    const bool was_present = present_[unit] != 0;
    present_[unit] = 0;
    return was_present;
  }

 private:
  Supply* supply() const { return source_.file().supply().get(); }

  FileRange FileRangeOf(std::size_t unit) const {
    const Extent extent = UnitExtent(unit);
    return {extent.offset, extent.nbytes};
  }

  Held HoldUnits(const std::vector<LoadedUnit>& units) const {
    if (supply() == nullptr) return {};
    std::vector<FileRange> ranges;
    for (const LoadedUnit& loaded : units) {
      if (present_[loaded.unit] == 0) ranges.push_back(FileRangeOf(loaded.unit));
    }
    return {supply(), std::move(ranges)};
  }

  void Load(const LoadedUnit& loaded, bool keep) {
    const Extent extent = UnitExtent(loaded.unit);
    source_.Read(extent.offset, extent.nbytes, loaded.raw);
    if (keep) present_[loaded.unit] = 1;
  }

  FileSource source_;
  std::shared_ptr<AnonymousMap> map_;
  std::vector<std::uint8_t> present_;  // booleans; vector<bool> would share bytes among threads
};

}  // namespace

std::shared_ptr<StreamImage> OpenMappedImage(const OpenFile& file, const ReadOptions& options) {
  return std::make_shared<MappedImage>(file, options);
}

std::shared_ptr<StreamImage> OpenReadImage(const std::shared_ptr<const OpenFile>& file,
                                           const ReadOptions& options) {
  return std::make_shared<ReadImage>(file, options);
}

}  // namespace pyckpt
