#include "read/stream_image.h"

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

#include "base/crc32.h"
#include "base/error.h"
#include "base/parallel.h"
#include "codec/decoder.h"

namespace pyckpt {

namespace {

// In raw bytes. It bounds the buffer of a thread that only checks.
constexpr std::uint64_t kMostInTurnNbytes = std::uint64_t{16} << 20;

constexpr std::uint64_t kPageNbytes = 4096;

// Half of the addresses that x86-64 and ARM give a process: 64 TiB.
constexpr std::uint64_t kMostNbytes = std::uint64_t{1} << 46;

}  // namespace

std::shared_ptr<AnonymousMap> StreamImage::NewMap(std::uint64_t nbytes) const {
  auto map = std::make_shared<AnonymousMap>();
  if (nbytes != 0 && !map->Grow(nbytes)) throw NoRoom(nbytes);
  return map;
}

Error StreamImage::NoRoom(std::uint64_t nbytes) const {
  const std::string what = std::to_string(nbytes) + " decompressed bytes";
  if (nbytes > kMostNbytes) {
    return Error::Corrupt("it claims " + what + ", more than there is room for", 0);
  }
  return Error::System(ENOMEM, "there is no room for " + what, options_.path);
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
  if (!damages.empty()) throw Error::Corrupt(damages[0].message, damages[0].code_offset);
}

void StreamImage::Bring(const std::vector<Extent>& extents) {
  Fill(extents, /*keep=*/true, /*checksums=*/false, &brought_nbytes_);
}

FillResult StreamImage::Fill(const std::vector<Extent>& extents, bool keep, bool checksums) {
  return Fill(extents, keep, checksums, &done_nbytes_);
}

FillResult StreamImage::Fill(const std::vector<Extent>& extents, bool keep, bool checksums,
                             std::atomic<std::uint64_t>* done) {
  struct Part {
    std::size_t unit;
    std::size_t extent;
    std::uint32_t crc;
  };
  if (keep) ExpectRuns(extents);
  const bool prepared = IsPrepared(extents);
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
      if (!prepared) Prepare({extents[i]});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kCorrupt) throw;
      result.damages.push_back({extents[i], error.offset(), error.what()});
      continue;
    }
    const std::size_t last = UnitAt(offset + nbytes - 1);
    for (std::size_t unit = UnitAt(offset); unit <= last; ++unit) pieces.push_back({unit, i, 0});
  }
  std::sort(pieces.begin(), pieces.end(), [](const Part& a, const Part& b) {
    return std::tie(a.unit, a.extent) < std::tie(b.unit, b.extent);
  });
  std::vector<std::size_t> wanted;  // units
  std::vector<std::size_t> starts;  // where the pieces of each unit begin
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (i != 0 && pieces[i].unit == pieces[i - 1].unit) continue;
    wanted.push_back(pieces[i].unit);
    starts.push_back(i);
  }
  starts.push_back(pieces.size());
  ExpectCode(wanted);

  const std::vector<std::size_t> groups =
      Groups(wanted.size(), [&](std::size_t i) { return UnitExtent(wanted[i]).nbytes; });

  std::mutex mutex;  // guards the damages
  const auto use = [&](const LoadedUnit& loaded, std::size_t at) {
    const Extent unit = UnitExtent(loaded.unit);
    if (loaded.damage) {
      const std::lock_guard<std::mutex> lock(mutex);
      result.damages.push_back(
          {unit, loaded.damage->offset(), loaded.damage->what(), code_is_in_file()});
      return;
    }
    for (std::size_t i = starts[at]; i < starts[at + 1]; ++i) {
      const Extent& whole = extents[pieces[i].extent];
      const std::uint64_t begin = std::max(whole.offset, unit.offset);
      const std::uint64_t end = std::min(whole.offset + whole.nbytes, unit.offset + unit.nbytes);
      if (checksums && loaded.crc && end - begin == unit.nbytes) {
        pieces[i].crc = *loaded.crc;
      } else if (checksums && loaded.raw == nullptr) {
        throw Error(ErrorKind::kArgument, "a block of this size can only be checked as a whole");
      } else if (checksums) {
        pieces[i].crc = Crc32({loaded.raw + (begin - unit.offset), end - begin});
      }
      if (counts_fill()) *done += end - begin;
    }
  };
  RunParallel(
      groups.size() - 1, options_.threads,
      [&] {
        const Loader loader = NewLoader();
        return [&, loader](std::size_t group) {
          std::vector<LoadedUnit> units(groups[group + 1] - groups[group]);
          for (std::size_t i = 0; i < units.size(); ++i) {
            units[i].unit = wanted[groups[group] + i];
          }
          loader(&units, keep);
          for (std::size_t i = 0; i < units.size(); ++i) use(units[i], groups[group] + i);
        };
      },
      [this] { Poll(); });

  // Pieces are sorted by unit, so the pieces of an extent are in the order of its bytes.
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

// Damage is left to be found with the extent that it belongs to.
bool StreamImage::IsPrepared(const std::vector<Extent>& extents) {
  try {
    Prepare(extents);
    return true;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCorrupt) throw;
    return false;
  }
}

void StreamImage::Expect(const std::vector<Extent>& extents) {
  std::vector<std::size_t> units;
  for (const Extent& run : ExpectRuns(extents)) {
    const std::size_t last = UnitAt(run.end() - 1);
    for (std::size_t unit = UnitAt(run.offset); unit <= last; ++unit) units.push_back(unit);
  }
  ExpectCode(units);
}

std::vector<Extent> StreamImage::ExpectRuns(const std::vector<Extent>& extents) {
  const std::uint64_t placed = placed_nbytes();
  ExtentSet runs;
  for (const Extent& extent : extents) {
    if (extent.nbytes == 0 || extent.nbytes > placed || extent.offset > placed - extent.nbytes) {
      continue;
    }
    const std::uint64_t begin = UnitExtent(UnitAt(extent.offset)).offset;
    // Up to the end of a page: padding between neighbours does not part them.
    const std::uint64_t end = UnitExtent(UnitAt(extent.end() - 1)).end();
    runs.Add({begin, end + PaddingTo(end, kPageNbytes) - begin});
  }
  std::vector<Extent> found = runs.Inside({0, placed});
  for (const Extent& run : found) ExpectUnits(run);
  return found;
}

std::vector<std::size_t> StreamImage::Groups(
    std::size_t count, const std::function<std::uint64_t(std::size_t)>& nbytes_of) const {
  const std::size_t threads = static_cast<std::size_t>(std::max(1, options_.threads));
  const std::size_t most_at_once = threads * most_in_turn();
  const std::size_t rounds = (count + most_at_once - 1) / most_at_once;
  // No thread is idle while others have several units.
  const std::size_t size = rounds == 0 ? 1 : (count + threads * rounds - 1) / (threads * rounds);
  std::vector<std::size_t> groups = {0};
  std::uint64_t nbytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t more = nbytes_of(i);
    if (i != groups.back() && (i - groups.back() == size || nbytes + more > kMostInTurnNbytes)) {
      groups.push_back(i);
      nbytes = 0;
    }
    nbytes += more;
  }
  if (count != 0) groups.push_back(count);
  return groups;
}

const std::uint8_t* StreamImage::Bytes(Extent extent) const {
  const std::uint64_t placed = placed_nbytes();
  if (extent.offset > placed || extent.nbytes > placed - extent.offset) {
    throw Error(ErrorKind::kArgument, "the requested bytes are not there");
  }
  return Address(extent.offset);
}

void StreamImage::Forget(Extent extent) {
  forgotten_.Add(extent);
  DropForgotten(extent);
}

void StreamImage::DropForgotten(Extent extent) {
  // The pages at both ends may be forgotten as a whole by now.
  constexpr std::uint64_t kMostPageNbytes = std::uint64_t{64} << 10;
  const std::uint64_t placed = placed_nbytes();
  const std::uint64_t begin = extent.offset - std::min(extent.offset, kMostPageNbytes);
  const std::uint64_t end = std::min(std::min(extent.end(), placed) + kMostPageNbytes, placed);
  if (begin >= end) return;
  for (const Extent part : forgotten_.Inside({begin, end - begin})) {
    DropPages(base() + part.offset, part.nbytes);
  }
}

void StreamImage::Skip(std::uint64_t offset) {
  offset = std::min(offset, placed_nbytes());
  if (offset < given_back_ + kUnitNbytes) return;  // soon enough later
  given_back_ = ReleaseUnits({given_back_, offset - given_back_});
}

void StreamImage::Release(Extent extent) {
  const std::uint64_t placed = placed_nbytes();
  if (extent.offset >= placed) return;
  ReleaseUnits({extent.offset, std::min(extent.nbytes, placed - extent.offset)});
}

std::uint64_t StreamImage::ReleaseUnits(Extent extent) {
  std::uint64_t end = extent.offset;
  std::uint64_t begin = end;
  bool any_lost = false;
  for (std::size_t unit = UnitAt(extent.offset); end < extent.end(); ++unit) {
    const Extent place = UnitExtent(unit);
    if (place.end() > extent.end()) break;
    if (place.offset < extent.offset) {
      begin = end = place.end();
      continue;
    }
    any_lost = Lose(unit) || any_lost;
    end = place.end();
  }
  if (any_lost) DropPages(base() + begin, end - begin);
  return end;
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

void StreamImage::SetAddresses(const std::vector<LoadedUnit*>& units, bool keep,
                               Buffer* buffer) const {
  std::uint64_t nbytes = 0;
  for (const LoadedUnit* loaded : units) nbytes += UnitExtent(loaded->unit).nbytes;
  std::uint8_t* checked = keep ? nullptr : buffer->Reserve(nbytes);
  for (LoadedUnit* loaded : units) {
    const Extent place = UnitExtent(loaded->unit);
    loaded->raw = keep ? base() + place.offset : checked;
    if (!keep) checked += place.nbytes;
  }
}

StreamImage::Loader StreamImage::NewLoader() {
  return [this](std::vector<LoadedUnit>* units, bool /*keep*/) {
    for (LoadedUnit& loaded : *units) loaded.raw = base() + UnitExtent(loaded.unit).offset;
  };
}

void StreamImage::Poll() {
  if (options_.poll) options_.poll(done_nbytes());
}

}  // namespace pyckpt
