// The file on disk: the only place that makes write, fsync and rename calls.
//
// All or nothing: bytes go to a temporary file in the target's folder, and the
// target's name changes hands in one rename. Where the file system can, the
// temporary file has no name at all until then, so a killed process leaves
// nothing behind.
//
//   Open --WriteAt*--> Seal --> Commit --> Keep     (the new file stays)
//                                     `--> Restore  (the old file comes back)
// Abandon() at any point before Commit; the destructor abandons or restores.
// Every failure throws Error::System with the path concerned.
#ifndef PYCKPT_WRITE_FILE_SINK_H_
#define PYCKPT_WRITE_FILE_SINK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

class FileSink {
 public:
  // Creates the temporary file. Its mode bits are those of an existing target,
  // else what the umask leaves of 0666. With durable, Seal and Commit wait
  // until the disk has the bytes and the name.
  FileSink(std::string target, bool durable);
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  ~FileSink();

  // Reserves disk space, so that a full disk is known before the work is done.
  void Reserve(std::uint64_t nbytes);

  // Writes all spans one after another at offset. Thread-safe for ranges that
  // do not overlap.
  void WriteAt(std::uint64_t offset, const std::vector<Span>& spans);

  // No more bytes follow: sets the file's length and makes them durable.
  void Seal(std::uint64_t nbytes);

  // The target's name now means the new file. keep_previous holds the old file
  // aside until Keep or Restore; without it both do nothing.
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
