// The decompressed bytes of a file, addressed as if they all lay in memory. They
// are decoded where and when they are asked for, each block straight to its place,
// and tensors are made of the places themselves: nothing is copied afterwards.
//
//   a file that is not compressed    mapped, or read in units of 1 MiB
//   blocks whose sizes are known     decoded on their own, in parallel
//   any other                        decoded from the start on, as far as is asked
//
// Memory: what was asked for and is kept, in whole blocks, and for each thread a
// decoder. Blocks that are only to be checked go through one buffer a thread. Of
// blocks of unknown size (bzip2), 8 a thread of at most 2 MiB wait decoded for
// their place; the rare larger one, of equal bytes, is decoded again in its turn.
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

// Bytes of the stream that could not be had.
struct Damage {
  Extent extent;
  std::uint64_t file_offset = 0;  // where the file's own bytes begin to be wrong
  std::string message;
};

struct FillResult {
  std::vector<std::uint32_t> crcs;  // CRC-32 of each extent; of no meaning where damaged
  std::vector<Damage> damages;      // in order of their offsets
};

// How the work is done.
struct ReadOptions {
  int threads = 1;
  bool mapped = false;  // whether bytes of an uncompressed file stay in the file
  // Called by the waiting thread with the bytes that are done, of all calls
  // together; throws to stop the work.
  std::function<void(std::uint64_t)> poll;
};

// Made by OpenImage(). Throws Error::Corrupt where the file is broken, if nothing else is
// said. One thread at a time. What Take() returns may live and go on any thread.
class StreamImage {
 public:
  StreamImage(const StreamImage&) = delete;
  StreamImage& operator=(const StreamImage&) = delete;
  virtual ~StreamImage() = default;

  // Null when the file is not compressed.
  virtual const Format* format() const { return nullptr; }

  // How many bytes of the file hold the bytes of extent, about; all that is known
  // where blocks have no places is 0.
  virtual std::uint64_t CodeNbytes(Extent extent) const { return extent.nbytes; }

  // Of the stream; kUnknownNbytes until a stream of unknown size is decoded.
  virtual std::uint64_t nbytes() const = 0;

  // How many bytes have a place: of a stream of unknown size as many as are decoded.
  virtual std::uint64_t placed_nbytes() const { return nbytes(); }

  // Makes the bytes readable. False if the stream ends before they do.
  bool Require(Extent extent);
  // The same for many at once; throws Corrupt if the stream ends before one does.
  void RequireAll(const std::vector<Extent>& extents);

  // Tells that nothing below offset will be asked for that was not yet.
  virtual void Skip(std::uint64_t offset) { (void)offset; }

  // Decodes the extents, and takes their checksums if asked to. Without keep they
  // need not be readable afterwards. Damage is returned, not thrown.
  FillResult Fill(const std::vector<Extent>& extents, bool keep, bool checksums);

  // Decodes what has not been, keeping nothing, and compares the checksums of the
  // whole stream.
  virtual std::vector<Damage> Finish() { return {}; }

  // The extent's bytes, once they are readable; of a stream that has not come so
  // far it throws kArgument. Valid as long as what Address() returns.
  const std::uint8_t* Bytes(Extent extent) const;

  // The same, to keep. They stay where they are as long as
  // the result lives, which keeps their memory alone and nothing else of the image;
  // with the result they are lost, so each extent is to be taken once. While
  // something is taken, a stream of unknown size decodes no more than there is room
  // for: then it throws kArgument.
  std::shared_ptr<std::uint8_t> Take(Extent extent);

  // Gives back the memory of what is there of the extent, which will not be asked
  // for again.
  void Forget(Extent extent);

  // Where the byte at offset is, once it is readable. Stays so when no more is
  // required.
  std::uint8_t* Address(std::uint64_t offset) const { return base() + offset; }

 protected:
  // Brings one unit to its place, or without keep to memory that is valid until
  // the next call. Used by one thread alone.
  using Loader = std::function<const std::uint8_t*(std::size_t unit, bool keep)>;

  // What is read or decoded at once where the file itself has no units.
  static constexpr std::uint64_t kUnitNbytes = std::uint64_t{1} << 20;

  explicit StreamImage(ReadOptions options) : options_(std::move(options)) {}

  // Address space for a stream that claims so many bytes; throws Corrupt if there is none.
  static std::shared_ptr<AnonymousMap> NewMap(std::uint64_t nbytes);

  virtual std::uint8_t* base() const = 0;
  // What owns the memory at base().
  virtual std::shared_ptr<const void> memory() const = 0;
  // Whether the stream has so many bytes; decodes as far where nobody knows.
  virtual bool Reach(std::uint64_t end) { return end <= nbytes(); }
  // Tells that the whole extent is about to be brought to its place.
  virtual void Expect(Extent extent) { (void)extent; }
  // The units are what is decoded at once: their places, and who decodes.
  virtual std::size_t UnitAt(std::uint64_t offset) const;
  virtual Extent UnitExtent(std::size_t unit) const;
  virtual Loader NewLoader();

  // Whether Fill() counts what is done, or the decoding that goes before it.
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
