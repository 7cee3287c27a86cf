// The file on disk. Of the core, only this file calls write, fsync and rename.
//
// All or nothing: bytes go to a temporary file in the target's folder. One rename then gives it the
// target's name. If the file system allows it, the temporary file has no name until Commit, so a
// process that is killed before leaves nothing behind.
//
// Failures throw Error::System with the target's path. The destructor abandons, it never commits.
//
// While a file has a hidden name, .TARGET.MARK-RANDOM.tmp or .TARGET.MARK-RANDOM.previous, this
// process has a lock (flock) on it. So whoever can lock such a file knows that its process has
// died, if that ran on the system that MARK stands for: see pyckpt/storage/leftovers.py. Where the
// file cannot be locked, MARK is "unlocked".
//
// A file that is not durable is written through the page cache: it is quickest there, and is soon
// read. A durable one goes past it, so that a checkpoint does not push what the training reads out
// of memory:
//   - from aligned segments with O_DIRECT. write/segment_writer.h says how much memory they take;
//   - if the file is small, the file system does not take that, or memory lacks, from the spans,
//     with pages that the kernel drops once they are on disk (RWF_DONTCACHE, Linux 6.14);
//   - else from the spans, with pages that Seal drops.
#ifndef PYCKPT_WRITE_FILE_SINK_H_
#define PYCKPT_WRITE_FILE_SINK_H_

#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "write/segment_writer.h"
#include "write/sink.h"

namespace pyckpt {

class FileSink final : public Sink {
 public:
  // If durable, Seal waits until the bytes are on disk, and Commit until the name is. The mark is
  // eight characters: see above.
  FileSink(std::string target, bool durable, std::string mark);
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  ~FileSink() override;

  // Creates the temporary file. It takes over what TakeOverAttributes() says of an existing target.
  // If there is none, it gets 0666 without the bits of the umask. Fails if the target could not be
  // replaced at the end: its folder is not writable, or is sticky (as /tmp) and the target is
  // another user's.
  void Open(std::uint64_t most_nbytes) override;

  void Reserve(std::uint64_t nbytes) override;
  void WriteAt(std::uint64_t offset, const std::vector<Span>& spans) override;
  void Stop() noexcept override;

  // Sets the file's length to nbytes. If durable, flushes the file to disk.
  void Seal(std::uint64_t nbytes) override;

  // Gives the new file the target's name. With keep_previous the old file keeps a second name until
  // Keep removes it or Restore brings it back. If only the flush of the folder fails, the new file
  // has its name, and the error says so.
  void Commit(bool keep_previous) override;
  void Keep() noexcept override;
  void Restore() noexcept override;

  void Abandon() noexcept override;

 private:
  void CheckReplaceable(uid_t owner) const;
  void StartSegments();
  void Write(std::uint64_t offset, const std::vector<Span>& spans);
  ssize_t WriteSome(const iovec* parts, int count, std::uint64_t offset);
  int CreateHidden(const char* purpose, mode_t mode, std::string* path) const;
  void HoldPrevious();
  void CopyPrevious();
  void ReleasePrevious() noexcept;
  std::string Sibling(const char* purpose, bool locked) const;
  int OpenFolder() const;
  void SyncFolder(int folder);

  std::string target_;
  std::string folder_;
  bool durable_;
  std::string mark_;
  int fd_ = -1;
  int previous_fd_ = -1;                // the old file, locked while it has its second name
  std::atomic<bool> direct_{false};     // writes go past the page cache
  std::atomic<bool> drop_pages_{true};  // the kernel may take RWF_DONTCACHE
  std::string temporary_;               // empty while the file has no name
  std::string previous_;                // the old file's second name; empty when there is none
  bool committed_ = false;
  bool restorable_ = false;
  std::unique_ptr<SegmentWriter> segments_;  // null if the spans are written as they are
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_FILE_SINK_H_
