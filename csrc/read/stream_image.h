// The decompressed bytes of a file, addressed as if all of them were in memory. They are decoded
// when they are asked for, each block straight to its place. Tensors use this memory, so nothing is
// copied afterwards.
//
//   a file that is not compressed    mapped, or read in units of 1 MiB
//   blocks whose sizes are known     decoded on their own, in parallel
//   any other                        decoded from the start, as far as needed
//   deflated records of a zip file   decoded out of another image: inflated_image.h
//
// Memory: the wanted bytes, in whole blocks, until they are skipped or forgotten, and a decoder for
// each thread. Blocks that are only checked are decoded to one buffer per thread, which holds as
// many as are decoded in turn: one block, or several of together at most 16 MiB. If block sizes are
// unknown (bzip2), up to 8 decoded blocks per thread wait for their place, each of at most 2 MiB. A
// larger block (rare, of equal bytes) does not wait: it is decoded again when its place is known.
#ifndef PYCKPT_READ_STREAM_IMAGE_H_
#define PYCKPT_READ_STREAM_IMAGE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/anonymous_map.h"
#include "base/bytes.h"
#include "base/error.h"
#include "read/extent.h"
#include "read/extent_set.h"

namespace pyckpt {

class FileMap;
struct Format;

// Bytes of the stream that could not be decoded.
struct Damage {
  Extent extent;
  std::uint64_t code_offset = 0;  // where the code begins to be wrong
  std::string message;
  bool code_is_in_file = true;  // else in the decompressed stream of a compressed file
};

struct FillResult {
  std::vector<std::uint32_t> crcs;  // CRC-32 of each extent; meaningless where damaged
  std::vector<Damage> damages;      // in order of their offsets
};

// How the work is done.
struct ReadOptions {
  std::string path;  // what messages call the file
  int threads = 1;
  bool mapped = false;  // whether bytes of an uncompressed file stay in the file
  // Called by the waiting thread with the number of bytes done, over all calls so far. Throws to
  // stop the work.
  std::function<void(std::uint64_t)> poll;
};

// Made by OpenImage(). Methods that read or decode throw Error::System and Error::Corrupt unless
// they say otherwise. Only one thread may use an image at a time. What Take() returns may be used
// and released on any thread.
class StreamImage {
 public:
  StreamImage(const StreamImage&) = delete;
  StreamImage& operator=(const StreamImage&) = delete;
  virtual ~StreamImage() = default;

  // Null when the file is not compressed.
  virtual const Format* format() const { return nullptr; }

  // About how many bytes of the file contain the code of extent. 0 if this is not known: the file
  // does not say the places of its blocks.
  virtual std::uint64_t CodeNbytes(Extent extent) const { return extent.nbytes; }

  // The size of the stream. kUnknownNbytes if only decoding can tell, until it reaches the end.
  virtual std::uint64_t nbytes() const = 0;

  // How many bytes have a place. For a stream of unknown size: as many as are decoded.
  virtual std::uint64_t placed_nbytes() const { return nbytes(); }

  // Makes the bytes readable. Returns false if the stream ends before the extent does.
  bool Require(Extent extent);
  // The same for many extents at once. Throws Corrupt if the stream ends before one of them does.
  void RequireAll(const std::vector<Extent>& extents);

  // Gives back the memory of all bytes below offset, except those to keep. Bytes must not be taken
  // then. In a stream of unknown size they cannot be asked for again; in any other, they are
  // decoded again.
  virtual void Skip(std::uint64_t offset);

  // Gives back the memory of the blocks that are wholly in the extent. They are decoded again when
  // they are asked for. In a stream of unknown size, where that cannot be, it does nothing.
  void Release(Extent extent);

  // The bytes stay readable when they are skipped, once they are decoded. Only one extent at a time
  // is kept.
  virtual void Keep(Extent extent) { (void)extent; }

  // Says that all of the extents will be required or filled and kept, by whatever calls. It saves
  // time: neighbours then share large pages of memory, whichever is decoded first, and their code
  // comes in few requests.
  void Expect(const std::vector<Extent>& extents);

  // Decodes all units with bytes of the extents, in the order of the file, and keeps them. Whoever
  // fills parts of the extents in another order afterwards finds them there: so each byte of a file
  // with a supply comes once. Damage is left for Fill() to find.
  void Bring(const std::vector<Extent>& extents);

  // Decodes the extents, and computes their checksums if checksums is true. Without keep, the bytes
  // may be unreadable afterwards. Damage is returned, not thrown.
  FillResult Fill(const std::vector<Extent>& extents, bool keep, bool checksums);

  // Decodes what has not been decoded, without keeping it, and compares the checksums of the whole
  // stream. Damage is returned, not thrown.
  virtual std::vector<Damage> Finish() { return {}; }

  // How many bytes of the file follow the compressed stream and are not read. Known after Finish().
  virtual std::uint64_t trailing_nbytes() const { return 0; }

  // The extent's bytes, which must be readable. Throws kArgument if the extent reaches beyond
  // placed_nbytes(). Valid as long as what Address() returns.
  const std::uint8_t* Bytes(Extent extent) const;

  // Like Bytes(), but the bytes stay in place as long as the result lives, even without the image.
  // The result keeps their memory and no other part of the image. When it is released, the bytes
  // are lost, so take each extent only once. While something is taken, a stream of unknown size
  // throws kArgument when it needs more room.
  std::shared_ptr<std::uint8_t> Take(Extent extent);

  // Gives back the extent's memory, or as soon as it is decoded. Do not ask for this extent again.
  // A page of memory is given back once all of its bytes are forgotten.
  void Forget(Extent extent);

  // The stream's bytes in the file itself, for those who read each byte once. Null if the file is
  // compressed: then the bytes must be required.
  virtual std::shared_ptr<const FileMap> Mapping() { return nullptr; }

  const ReadOptions& options() const { return options_; }
  // So many bytes are done, as poll is told.
  std::uint64_t done_nbytes() const {
    return std::max<std::uint64_t>(brought_nbytes_, done_nbytes_);
  }

  // The address of the byte at offset, which must be readable. Valid until more bytes are required.
  std::uint8_t* Address(std::uint64_t offset) const { return base() + offset; }

 protected:
  // A unit in memory, or what is wrong with it.
  struct LoadedUnit {
    std::size_t unit = 0;
    std::uint8_t* raw = nullptr;       // null if it is damaged, or too large for a buffer
    std::optional<std::uint32_t> crc;  // of the whole unit, if it is known anyway
    std::optional<Error> damage;
  };
  // Brings units into memory and sets their addresses: their places, or without keep possibly a
  // buffer that is valid until the next call. A unit that is too large for a buffer has a CRC-32
  // instead. Each thread has its own loader.
  using Loader = std::function<void(std::vector<LoadedUnit>* units, bool keep)>;
  // Sets where a loader brings units: to their places, or without keep to buffer, one after
  // another.
  void SetAddresses(const std::vector<LoadedUnit*>& units, bool keep, Buffer* buffer) const;

  // The size of a unit, unless units are the file's blocks.
  static constexpr std::uint64_t kUnitNbytes = std::uint64_t{1} << 20;

  explicit StreamImage(ReadOptions options) : options_(std::move(options)) {}

  // Address space for a stream that claims nbytes. Throws NoRoom() if there is not enough.
  std::shared_ptr<AnonymousMap> NewMap(std::uint64_t nbytes) const;
  // What to throw if the system has no address space for a stream of nbytes: Corrupt if no file has
  // so many, else System, because another process could have it.
  Error NoRoom(std::uint64_t nbytes) const;

  virtual std::uint8_t* base() const = 0;
  // What owns the memory at base().
  virtual std::shared_ptr<const void> memory() const = 0;
  // Whether the stream has at least end bytes. A stream of unknown size is decoded up to end.
  virtual bool Reach(std::uint64_t end) { return end <= nbytes(); }
  // Called by the thread that uses the image, before loaders bring the extents.
  virtual void Prepare(const std::vector<Extent>& extents) { (void)extents; }
  // Called before all bytes of the extent, which consists of whole units, are brought to their
  // places.
  virtual void ExpectUnits(Extent extent) { (void)extent; }
  // Called before loaders bring these units, which are in order. Files with a supply say what code
  // they will hold.
  virtual void ExpectCode(const std::vector<std::size_t>& units) { (void)units; }
  // A unit is what a loader brings in one call. These give the unit at an offset, a unit's place,
  // and a loader.
  virtual std::size_t UnitAt(std::uint64_t offset) const;
  virtual Extent UnitExtent(std::size_t unit) const;
  virtual Loader NewLoader();
  // How many units one call of a loader should get.
  virtual std::size_t most_in_turn() const { return 1; }
  // Notes that the unit has to be brought again. Returns false if its memory must not be given
  // back.
  virtual bool Lose(std::size_t unit) {
    (void)unit;
    return false;
  }

  // Gives back what is forgotten of the bytes in extent, which are decoded.
  void DropForgotten(Extent extent);

  // Whether what loaders decode are bytes of the file itself: see Damage.
  virtual bool code_is_in_file() const { return true; }

  // Whether Fill() counts the bytes done. If not, Reach() counts them.
  virtual bool counts_fill() const { return true; }
  void Count(std::uint64_t nbytes) { done_nbytes_ += nbytes; }
  void Poll();

 private:
  // Which of count units loaders get in one call: group k has those from the result's [k] on, up to
  // [k + 1]. A group has at most most_in_turn() units, and one unit or at most 16 MiB.
  std::vector<std::size_t> Groups(std::size_t count,
                                  const std::function<std::uint64_t(std::size_t)>& nbytes_of) const;

  // Gives back the units that are wholly in the extent, and returns where they end.
  std::uint64_t ReleaseUnits(Extent extent);
  // Tells ExpectUnits() of the units with bytes of the extents, which may be anywhere. Returns
  // these units, as runs.
  std::vector<Extent> ExpectRuns(const std::vector<Extent>& extents);

  bool IsPrepared(const std::vector<Extent>& extents);

  // Fill(), which adds what is done to done.
  FillResult Fill(const std::vector<Extent>& extents, bool keep, bool checksums,
                  std::atomic<std::uint64_t>* done);

  ReadOptions options_;
  ExtentSet forgotten_;
  std::uint64_t given_back_ = 0;  // by Skip(): everything below
  // Both count the same bytes, so the larger one is what is done.
  std::atomic<std::uint64_t> brought_nbytes_{0};
  std::atomic<std::uint64_t> done_nbytes_{0};
};

}  // namespace pyckpt

#endif  // PYCKPT_READ_STREAM_IMAGE_H_
