// The file on disk. Only this file calls write, fsync and rename.
//
// All or nothing: bytes go to a temporary file in the target's folder, which then takes the
// target's name in one rename. Where the file system allows it, the temporary file has no name
// until then, so a killed process leaves nothing behind.
//
//   Open --WriteAt*--> Seal --> Commit --> Keep     (the new file stays)
//                                     `--> Restore  (the old file comes back)
// Abandon() may be called at any time before Commit. The destructor abandons or restores; it
// never commits. Every failure throws Error::System with the path.
#ifndef PYCKPT_WRITE_FILE_SINK_H_
#define PYCKPT_WRITE_FILE_SINK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

class FileSink {
 public:
  // Creates the temporary file. It gets the mode bits of an existing target, else 0666 without
  // the umask. If durable, Seal waits until the disk has the bytes, and Commit until it has the
  // name.
  FileSink(std::string target, bool durable);
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  ~FileSink();

  // Reserves disk space, so that a full disk fails before any work is done.
  void Reserve(std::uint64_t nbytes);

  // Writes all spans one after another at offset. Thread-safe for ranges that
  // do not overlap.
  void WriteAt(std::uint64_t offset, const std::vector<Span>& spans);

  // No more bytes follow: sets the file's length and makes them durable.
  void Seal(std::uint64_t nbytes);

  // Gives the new file the target's name. With keep_previous the old file is held aside until
  // Keep or Restore; without it these do nothing.
  void Commit(bool keep_previous);
  void Keep() noexcept;
  void Restore() noexcept;

  void Abandon() noexcept;

 private:
  std::string Sibling(const char* purpose) const;
  void SyncFolder();

  std::string target_;
  std::string folder_;
  bool durable_;
  int fd_ = -1;
  std::string temporary_;  // empty while the file has no name
  std::string previous_;   // the old file's second name; empty when there is none
  bool committed_ = false;
  bool restorable_ = false;
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_FILE_SINK_H_
