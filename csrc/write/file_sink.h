// The file on disk. Only this file calls write, fsync and rename.
//
// All or nothing: bytes go to a temporary file in the target's folder. One rename then gives it the
// target's name. If the file system allows it, the temporary file has no name until Commit, so a
// process that is killed before leaves nothing behind.
//
//   Open --WriteAt*--> Seal --> Commit --> Keep     (the new file stays)
//                                     `--> Restore  (the old file comes back)
// Abandon() may be called at any time before Commit. The destructor abandons, or restores after a
// Commit without Keep. It never commits. Failures throw Error::System with the target's path. Keep,
// Restore and Abandon ignore failures.
#ifndef PYCKPT_WRITE_FILE_SINK_H_
#define PYCKPT_WRITE_FILE_SINK_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace pyckpt {

class FileSink {
 public:
  // Creates the temporary file. It takes over what TakeOverAttributes() says of an existing target.
  // If there is none, it gets 0666 without the bits of the umask. If durable, Seal waits until the
  // bytes are on disk, and Commit until the name is. Fails if the target could not be replaced at
  // the end: its folder is not writable, or is sticky (as /tmp) and the target is another user's.
  FileSink(std::string target, bool durable);
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  ~FileSink();

  // Reserves disk space, so that a full disk fails before any work is done. Does nothing if the
  // file system cannot reserve.
  void Reserve(std::uint64_t nbytes);

  // Writes all spans one after another at offset. Thread-safe for ranges that do not overlap.
  void WriteAt(std::uint64_t offset, const std::vector<Span>& spans);

  // Call it after the last WriteAt. Sets the file's length to nbytes. If durable, flushes the file
  // to disk.
  void Seal(std::uint64_t nbytes);

  // Gives the new file the target's name. With keep_previous the old file keeps a second name until
  // Keep removes it or Restore brings it back. If there was no old file, Restore removes the new
  // one. Without keep_previous, Keep and Restore do nothing.
  void Commit(bool keep_previous);
  void Keep() noexcept;
  void Restore() noexcept;

  void Abandon() noexcept;

 private:
  void CheckReplaceable(uid_t owner) const;
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
