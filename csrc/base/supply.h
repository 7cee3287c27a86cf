// Files whose bytes come when they are wanted: objects of a store. The file has its full size from
// the start, and reads as zeros where nothing has come yet.
#ifndef PYCKPT_BASE_SUPPLY_H_
#define PYCKPT_BASE_SUPPLY_H_

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

// Bytes of a file as it is stored, inside the file.
struct FileRange {
  std::uint64_t offset = 0;
  std::uint64_t nbytes = 0;
};

// Brings bytes into a file. Several threads may call it at once.
class Supply {
 public:
  Supply() = default;
  Supply(const Supply&) = delete;
  Supply& operator=(const Supply&) = delete;
  virtual ~Supply() = default;

  // Says which bytes will be held next, in about this order, so that they can be brought ahead.
  // Returns at once, and replaces what was said before, unless that has all of it.
  virtual void Expect(const std::vector<FileRange>& ranges) = 0;

  // Waits until the bytes are in the file. They stay until they are released. Throws if they cannot
  // be brought; nothing is held then.
  virtual void Hold(const std::vector<FileRange>& ranges) = 0;
  // Bytes that nobody holds may be taken out of the file. They come again when they are held.
  virtual void Release(const std::vector<FileRange>& ranges) noexcept = 0;
};

// Bytes that are in the file as long as this lives. Without a supply, nothing is to be done.
class Held {
 public:
  Held() = default;
  Held(Supply* supply, std::vector<FileRange> ranges)
      : supply_(ranges.empty() ? nullptr : supply), ranges_(std::move(ranges)) {
    if (supply_ != nullptr) supply_->Hold(ranges_);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (supply_ != nullptr) supply_->Release(ranges_);
  }

 private:
  Supply* supply_ = nullptr;
  std::vector<FileRange> ranges_;
};

// The bytes of a file in memory, for those who find out which of them they need.
class FileBytes {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): bytes that are there need no supply.
  FileBytes(Span bytes, Supply* supply = nullptr) : bytes_(bytes), supply_(supply) {}

  // Only those that were asked for by Need() may be read.
  Span bytes() const { return bytes_; }

  // Waits until these bytes, as far as the file has them, are there. They stay as long as the file.
  void Need(std::uint64_t offset, std::uint64_t nbytes) const {
    if (supply_ == nullptr || offset >= bytes_.nbytes) return;
    nbytes = std::min<std::uint64_t>(nbytes, bytes_.nbytes - offset);
    if (nbytes != 0) supply_->Hold({{offset, nbytes}});
  }
  void NeedLast(std::uint64_t nbytes) const {
    nbytes = std::min<std::uint64_t>(nbytes, bytes_.nbytes);
    Need(bytes_.nbytes - nbytes, nbytes);
  }
  void NeedAll() const { Need(0, bytes_.nbytes); }

 private:
  Span bytes_;
  Supply* supply_;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_SUPPLY_H_
