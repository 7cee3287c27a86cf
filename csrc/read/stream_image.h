// The decompressed bytes of a file, addressed as if all of them were in memory. They are decoded
// when they are asked for, each block straight to its place. Tensors are made of these places, so
// nothing is copied afterwards.
//
//   a file that is not compressed    mapped, or read in units of 1 MiB
//   blocks whose sizes are known     decoded on their own, in parallel
//   any other                        decoded from the start, as far as needed
//
// Memory: the kept bytes, in whole blocks, and a decoder for each thread. Blocks that are only
// checked go through one buffer a thread. Of blocks of unknown size (bzip2), 8 a thread wait
// decoded for their place, each of at most 2 MiB. A larger one (of equal bytes, rare) is decoded
// again in its turn.
#ifndef PYCKPT_READ_STREAM_IMAGE_H_
#define PYCKPT_READ_STREAM_IMAGE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/anonymous_map.h"
#include "base/bytes.h"

namespace pyckpt {

struct Format;

// Bytes of the decompressed stream.
struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t nbytes = 0;
};

// Bytes of the stream that could not be decoded.
struct Damage {
  Extent extent;
  std::uint64_t file_offset = 0;  // where the file's own bytes begin to be wrong
  std::string message;
};

struct FillResult {
  std::vector<std::uint32_t> crcs;  // CRC-32 of each extent; meaningless where damaged
  std::vector<Damage> damages;      // in order of their offsets
};

// How the work is done.
struct ReadOptions {
  int threads = 1;
  bool mapped = false;  // whether bytes of an uncompressed file stay in the file
  // Called by the waiting thread with the number of bytes done, over all calls so far. Throws to
  // stop the work.
  std::function<void(std::uint64_t)> poll;
};

// Made by OpenImage(). All methods throw Error::System and Error::Corrupt unless they say
// otherwise. One thread at a time. What Take() returns may be used and released on any thread.
class StreamImage {
 public:
  StreamImage(const StreamImage&) = delete;
  StreamImage& operator=(const StreamImage&) = delete;
  virtual ~StreamImage() = default;

  // Null when the file is not compressed.
  virtual const Format* format() const { return nullptr; }

  // About how many bytes of the file hold the bytes of extent; 0 if that is not known, because
  // blocks have no places.
  virtual std::uint64_t CodeNbytes(Extent extent) const { return extent.nbytes; }

  // Of the stream; kUnknownNbytes until a stream of unknown size is decoded.
  virtual std::uint64_t nbytes() const = 0;

  // How many bytes have a place. For a stream of unknown size: as many as are decoded.
  virtual std::uint64_t placed_nbytes() const { return nbytes(); }

  // Makes the bytes readable. False if the stream ends before they do.
  bool Require(Extent extent);
  // The same for many at once; throws Corrupt if the stream ends before one does.
  void RequireAll(const std::vector<Extent>& extents);

  // Promises that bytes below offset will not be asked for, except those asked for before.
  virtual void Skip(std::uint64_t offset) { (void)offset; }

  // Decodes the extents, and takes their checksums if checksums is true. Without keep, the bytes
  // may be unreadable afterwards. Damage is returned, not thrown.
  FillResult Fill(const std::vector<Extent>& extents, bool keep, bool checksums);

  // Decodes what has not been decoded, keeps nothing of it, and compares the checksums of the
  // whole stream.
  virtual std::vector<Damage> Finish() { return {}; }

  // The extent's bytes, once they are readable. Throws kArgument if a stream of unknown size is
  // not decoded so far. Valid as long as what Address() returns.
  const std::uint8_t* Bytes(Extent extent) const;

  // The same, to keep. The bytes stay in place as long as the result lives; it keeps their memory
  // and nothing else of the image. When the result goes, the bytes are lost, so take each extent
  // once. While something is taken, a stream of unknown size throws kArgument when it needs more
  // room.
  std::shared_ptr<std::uint8_t> Take(Extent extent);

  // Gives back the extent's memory. It must not be asked for again.
  void Forget(Extent extent);

  // Where the byte at offset is, once it is readable. Valid until more is required.
  std::uint8_t* Address(std::uint64_t offset) const { return base() + offset; }

 protected:
  // Brings one unit to its place, or without keep to memory that is valid until the next call.
  // Each thread has its own.
  using Loader = std::function<const std::uint8_t*(std::size_t unit, bool keep)>;

  // What is read or decoded at once where the file itself has no units.
  static constexpr std::uint64_t kUnitNbytes = std::uint64_t{1} << 20;

  explicit StreamImage(ReadOptions options) : options_(std::move(options)) {}

  // Address space for a stream that claims so many bytes; throws Corrupt if there is none.
  static std::shared_ptr<AnonymousMap> NewMap(std::uint64_t nbytes);

  virtual std::uint8_t* base() const = 0;
  // What owns the memory at base().
  virtual std::shared_ptr<const void> memory() const = 0;
  // Whether the stream has at least end bytes. A stream of unknown size is decoded that far.
  virtual bool Reach(std::uint64_t end) { return end <= nbytes(); }
  // The whole extent is about to be brought to its place.
  virtual void Expect(Extent extent) { (void)extent; }
  // A unit is what is decoded at once: its number, its place, and its loader.
  virtual std::size_t UnitAt(std::uint64_t offset) const;
  virtual Extent UnitExtent(std::size_t unit) const;
  virtual Loader NewLoader();

  // Whether Fill() counts the bytes done. If not, decoding before Fill() does.
  virtual bool counts_fill() const { return true; }
  void Count(std::uint64_t nbytes) { done_nbytes_ += nbytes; }
  void Poll();
  const ReadOptions& options() const { return options_; }

 private:
  ReadOptions options_;
  std::atomic<std::uint64_t> done_nbytes_{0};
};

}  // namespace pyckpt

#endif  // PYCKPT_READ_STREAM_IMAGE_H_
