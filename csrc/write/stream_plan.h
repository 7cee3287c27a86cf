// The archive as one logical byte stream, planned before a byte is written.
//
// Segments are appended in order: fixed bytes, borrowed memory, sources, and deferred bytes.
// Sources are read when their turn comes. Deferred bytes (a checksum, a directory) depend on the
// bytes before them, but their size is known when they are added.
//
// Then the stream is read in chunks: Read() in parallel and in any order, Join() once per chunk and
// in stream order. Join() makes the deferred bytes. A chunk without any is complete after Read().
#ifndef PYCKPT_WRITE_STREAM_PLAN_H_
#define PYCKPT_WRITE_STREAM_PLAN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/source.h"
#include "codec/chunk.h"

namespace pyckpt {

class StreamPlan {
 public:
  using ChecksumId = std::size_t;
  static constexpr ChecksumId kNoChecksum = static_cast<ChecksumId>(-1);

  // A checksum over all segments that name it, in stream order.
  ChecksumId NewChecksum();

  void AddBytes(std::string bytes, ChecksumId checksum = kNoChecksum);
  void AddZeros(std::uint64_t nbytes);
  // The memory must stay valid and unchanged until the stream is written.
  void AddMemory(Span memory, std::uint32_t element_nbytes, ChecksumId checksum);
  void AddSource(std::shared_ptr<Source> source, std::uint64_t nbytes, std::uint32_t element_nbytes,
                 ChecksumId checksum);
  // make() must return exactly nbytes bytes. Join() calls it once the checksums contain all bytes
  // before it.
  void AddDeferred(std::uint64_t nbytes, std::function<std::string()> make);

  std::uint64_t nbytes() const { return nbytes_; }

  // Fills chunk with [offset, offset + nbytes) and the checksums of its pieces. If it is marked as
  // deferred, some of its bytes are in place only after its Join(). Thread-safe, also while another
  // thread is in Join().
  void Read(std::uint64_t offset, std::size_t nbytes, Chunk* chunk) const;

  // Adds the chunk to the checksums and makes its deferred bytes. Call it once per chunk, in
  // stream order, one at a time; others may read the chunk meanwhile, except its deferred bytes.
  // Throws kCodec if deferred bytes have the wrong size.
  void Join(const Chunk& chunk);

  // The value so far; final once the last segment of this checksum is joined.
  std::uint32_t checksum(ChecksumId id) const { return checksums_[id].crc; }

 private:
  struct Segment {
    std::uint64_t offset = 0;
    std::uint64_t nbytes = 0;
    std::uint32_t element_nbytes = 1;
    ChecksumId checksum = kNoChecksum;
    const std::uint8_t* memory = nullptr;  // into owned bytes, or borrowed
    std::shared_ptr<Source> source;
    std::unique_ptr<std::string> owned;  // its address stays when segments are added
    bool deferred = false;               // Join() makes owned
    std::function<std::string()> make;   // cleared once made
  };
  struct Checksum {
    std::uint32_t crc = 0;
    bool started = false;
  };

  void Add(Segment segment, std::uint64_t nbytes);

  std::vector<Segment> segments_;
  std::vector<Checksum> checksums_;
  std::uint64_t nbytes_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_STREAM_PLAN_H_
