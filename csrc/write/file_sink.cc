#include "write/file_sink.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <new>
#include <random>
#include <utility>

#include "base/error.h"
#include "write/direct_io.h"
#include "write/file_attributes.h"

// The C library may be older than the kernel that will run this, and lack the flag.
#if defined(__linux__) && defined(RWF_HIPRI)
#define PYCKPT_RWF_DONTCACHE 0x80
#endif

namespace pyckpt {
namespace {

// For smaller files it takes longer to get the memory of the segments than they save.
constexpr std::uint64_t kWorthSegments =
    2 * SegmentWriter::kSegments * SegmentWriter::kSegmentNbytes;

// The most bytes that are given to the page cache at once. From 2 MiB on, Linux looks for pages of
// 2 MiB. The host of a virtual machine may have to find the memory for such a page first, which
// takes ten times as long as the copy.
constexpr std::size_t kCachedNbytes = std::size_t{1} << 20;

constexpr mode_t kNewFileMode = 0666;
constexpr mode_t kPermissions = 0777;

std::string FolderOf(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

constexpr const char* kNewFileFailed =
    "cannot make a new file in its folder (which a save needs, since it never overwrites a file in "
    "place)";

// Retries a system call that a signal interrupted.
template <typename Call>
auto Retry(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

class OwnedDescriptor {
 public:
  explicit OwnedDescriptor(int fd) : fd_(fd) {}
  OwnedDescriptor(const OwnedDescriptor&) = delete;
  OwnedDescriptor& operator=(const OwnedDescriptor&) = delete;
  ~OwnedDescriptor() {
    if (fd_ != -1) close(fd_);
  }

  int fd() const { return fd_; }

 private:
  int fd_;
};

// Says that this process lives, as long as it has the file open. Other processes are never waited
// for. False if one has the lock, or if the file system has none.
bool Lock(int fd, int how) {
  return Retry([&] { return flock(fd, how | LOCK_NB); }) == 0;
}

// Closes a file that may be locked. A forked process may have it open too: without unlocking, that
// one would keep the lock.
void Unlock(int fd) {
  flock(fd, LOCK_UN);
  close(fd);
}

// A file without a name, or -1 if the file system does not support this.
int OpenUnnamed(const std::string& folder, mode_t mode) {
#if defined(O_TMPFILE)
  // Commit() names the file through /proc.
  if (access("/proc/self/fd", X_OK) != 0) return -1;
  return Retry([&] { return open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, mode); });
#else
  (void)folder;
  (void)mode;
  return -1;
#endif
}

}  // namespace

FileSink::FileSink(std::string target, bool durable, std::string mark)
    : target_(std::move(target)),
      folder_(FolderOf(target_)),
      durable_(durable),
      mark_(std::move(mark)) {}

void FileSink::Open(std::uint64_t most_nbytes) {
  // Fail now if the name cannot be looked up (too long, a loop of symbolic links), because the
  // rename at the end would fail too.
  struct stat existing {};
  const bool exists = stat(target_.c_str(), &existing) == 0;
  if (!exists && errno != ENOENT) throw Error::System(errno, "cannot write to", target_);
  if (exists) CheckReplaceable(existing.st_uid);
  // Never more readable than the old file, not even for a moment.
  const mode_t mode = exists ? existing.st_mode & kPermissions : kNewFileMode;
  fd_ = OpenUnnamed(folder_, mode);
  if (fd_ == -1) fd_ = CreateHidden("tmp", mode, &temporary_);
  if (exists) TakeOverAttributes(fd_, target_, existing);
  if (durable_ && most_nbytes >= kWorthSegments) StartSegments();
}

int FileSink::CreateHidden(const char* purpose, mode_t mode, std::string* path) const {
  for (bool locks = true;;) {
    std::string name = Sibling(purpose, locks);
    const int fd =
        Retry([&] { return open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, mode); });
    if (fd == -1) throw Error::System(errno, kNewFileFailed, target_);
    *path = std::move(name);  // a copy could fail, and leave the file
    if (!locks) return fd;
    struct stat made {};
    if (!Lock(fd, LOCK_EX)) {
      locks = errno == EWOULDBLOCK;  // else the file system has no locks
    } else if (fstat(fd, &made) == 0 && made.st_nlink != 0) {
      return fd;
    }
    // Before it was locked, another process has taken it for that of a dead one.
    unlink(path->c_str());
    path->clear();
    close(fd);
  }
}

void FileSink::StartSegments() {
  const std::size_t alignment = StartDirectIo(fd_, SegmentWriter::kMemoryAlignment);
  if (alignment == 0) return;
  try {
    segments_ = std::make_unique<SegmentWriter>(
        alignment, [this](std::uint64_t offset, Span segment) { Write(offset, {segment}); });
    direct_ = true;
  } catch (const std::bad_alloc&) {  // the spans need no memory
    StopDirectIo(fd_);
  }
}

FileSink::~FileSink() { FileSink::Abandon(); }

void FileSink::Reserve(std::uint64_t nbytes) {
  if (nbytes == 0) return;
#if defined(__linux__)
  // Not posix_fallocate: it writes to every block if the file system cannot reserve.
  if (Retry([&] { return fallocate(fd_, 0, 0, static_cast<off_t>(nbytes)); }) == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) {
    throw Error::System(errno, "cannot reserve space for", target_);
  }
#endif
}

void FileSink::WriteAt(std::uint64_t offset, const std::vector<Span>& spans) {
  if (segments_) {
    segments_->Add(offset, spans);
  } else {
    Write(offset, spans);
  }
}

void FileSink::Write(std::uint64_t offset, const std::vector<Span>& spans) {
  std::array<iovec, 256> batch{};
  static_assert(batch.size() <= IOV_MAX);
  std::size_t next = 0;  // the first span that is not written completely
  std::size_t done = 0;  // bytes of that span that are written
  while (next < spans.size()) {
    int count = 0;
    std::size_t room = direct_ ? SIZE_MAX : kCachedNbytes;
    for (std::size_t i = next;
         i < spans.size() && room != 0 && count < static_cast<int>(batch.size()); ++i) {
      const std::size_t skip = i == next ? done : 0;
      const std::size_t nbytes = std::min(spans[i].nbytes - skip, room);
      // iovec is also used for reading, so its pointer is not const.
      batch[static_cast<std::size_t>(count++)] = {const_cast<std::uint8_t*>(spans[i].data) + skip,
                                                  nbytes};
      room -= nbytes;
    }
    const ssize_t written = WriteSome(batch.data(), count, offset);
    if (written == -1) throw Error::System(errno, "cannot write", target_);
    offset += static_cast<std::uint64_t>(written);
    auto left = static_cast<std::size_t>(written);
    while (next < spans.size() && left >= spans[next].nbytes - done) {
      left -= spans[next].nbytes - done;
      done = 0;
      ++next;
    }
    done += left;
  }
}

// As pwritev, by the best way that the file system takes.
ssize_t FileSink::WriteSome(const iovec* parts, int count, std::uint64_t offset) {
  const auto at = static_cast<off_t>(offset);
  if (direct_) {
    const ssize_t written = Retry([&] { return pwritev(fd_, parts, count, at); });
    if (written != -1 || errno != EINVAL) return written;
    // The file system does not take direct writes after all, or none at this offset: the write
    // before was cut short. direct_ comes last: a thread that finds it false writes through the
    // page cache, which fails as long as the file is direct.
    StopDirectIo(fd_);
    direct_ = false;
  }
#if defined(PYCKPT_RWF_DONTCACHE)
  if (durable_ && drop_pages_) {
    const ssize_t written =
        Retry([&] { return pwritev2(fd_, parts, count, at, PYCKPT_RWF_DONTCACHE); });
    if (written != -1 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)) {
      return written;
    }
    drop_pages_ = false;
  }
#endif
  const ssize_t written = Retry([&] { return pwritev(fd_, parts, count, at); });
#if defined(__linux__)
  // Let the disk start to write now. fsync reports errors.
  if (durable_ && written > 0) sync_file_range(fd_, at, written, SYNC_FILE_RANGE_WRITE);
#endif
  return written;
}

void FileSink::Stop() noexcept {
  if (segments_) segments_->Stop();
}

void FileSink::Seal(std::uint64_t nbytes) {
  if (segments_) segments_->Finish();
  segments_.reset();
  if (Retry([&] { return ftruncate(fd_, static_cast<off_t>(nbytes)); }) != 0) {
    throw Error::System(errno, "cannot set the length of", target_);
  }
  if (!durable_) return;
  if (Retry([&] { return fsync(fd_); }) != 0) {
    throw Error::System(errno, "cannot flush to disk", target_);
  }
#if defined(POSIX_FADV_DONTNEED)
  // Pages are left by systems without the ways above, and one that ftruncate has cut.
  posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
#endif
}

void FileSink::Commit(bool keep_previous) {
  if (temporary_.empty()) {
    std::string name = Sibling("tmp", Lock(fd_, LOCK_EX));
    const std::string self = "/proc/self/fd/" + std::to_string(fd_);
    if (Retry([&] {
          return linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW);
        }) != 0) {
      throw Error::System(errno, "cannot name the temporary file for", target_);
    }
    temporary_ = std::move(name);  // a copy could fail, and leave the file
  }
  if (keep_previous) HoldPrevious();
  // Now, because afterwards it would be too late to fail.
  const OwnedDescriptor folder(durable_ ? OpenFolder() : -1);
  if (Retry([&] { return rename(temporary_.c_str(), target_.c_str()); }) != 0) {
    throw Error::System(errno, "cannot rename the temporary file to", target_);
  }
  temporary_.clear();
  committed_ = true;
  restorable_ = keep_previous;
  if (durable_) SyncFolder(folder.fd());
  Unlock(std::exchange(fd_, -1));
}

// Gives the old file, if there is one, a second name.
void FileSink::HoldPrevious() {
  // Shared, because several processes may hold one old file. It may not be readable.
  previous_fd_ = Retry([&] { return open(target_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  const bool locked = previous_fd_ != -1 && Lock(previous_fd_, LOCK_SH);
  std::string name = Sibling("previous", locked);
  if (Retry([&] { return link(target_.c_str(), name.c_str()); }) == 0) {
    previous_ = std::move(name);
  } else if (previous_fd_ != -1 &&
             (errno == EPERM || errno == ENOSYS || errno == EOPNOTSUPP || errno == EMLINK)) {
    CopyPrevious();
  } else if (errno != ENOENT) {
    throw Error::System(errno, "cannot keep the previous file of", target_);
  }
}

// Where there are no links (exFAT), the second file is a copy.
void FileSink::CopyPrevious() {
  const OwnedDescriptor old(std::exchange(previous_fd_, -1));
  struct stat existing {};
  const auto check = [this](bool succeeded) {
    if (!succeeded) throw Error::System(errno, "cannot copy the previous file of", target_);
  };
  check(fstat(old.fd(), &existing) == 0);
  previous_fd_ = CreateHidden("previous", existing.st_mode & kPermissions, &previous_);
  TakeOverAttributes(previous_fd_, target_, existing);
  std::vector<std::uint8_t> piece(kCachedNbytes);
  for (off_t at = 0; at < existing.st_size;) {
    const ssize_t found = Retry([&] { return pread(old.fd(), piece.data(), piece.size(), at); });
    check(found != -1);
    if (found == 0) break;  // another program has cut it
    const auto nbytes = static_cast<std::size_t>(found);
    const ssize_t copied = Retry([&] { return pwrite(previous_fd_, piece.data(), nbytes, at); });
    check(copied != -1);
    at += copied;
  }
  check(!durable_ || Retry([&] { return fsync(previous_fd_); }) == 0);
}

// Its second name is gone.
void FileSink::ReleasePrevious() noexcept {
  previous_.clear();
  if (previous_fd_ != -1) Unlock(std::exchange(previous_fd_, -1));
}

void FileSink::Keep() noexcept {
  // If it cannot be removed now, Abandon tries again.
  if (!previous_.empty() && unlink(previous_.c_str()) == 0) ReleasePrevious();
  restorable_ = false;
}

void FileSink::Restore() noexcept {
  if (std::exchange(restorable_, false)) {
    if (previous_.empty()) {
      unlink(target_.c_str());
    } else {
      Retry([&] { return rename(previous_.c_str(), target_.c_str()); });
      ReleasePrevious();
    }
  }
}

void FileSink::Abandon() noexcept {
  segments_.reset();
  if (committed_) Restore();
  // Closed first, because FUSE and NFS give a file that is open another name in place of removing
  // it, for which a full disk has no room.
  if (fd_ != -1) Unlock(std::exchange(fd_, -1));
  if (!temporary_.empty()) unlink(temporary_.c_str());
  temporary_.clear();
  if (previous_fd_ != -1) Unlock(std::exchange(previous_fd_, -1));
  if (!previous_.empty()) unlink(previous_.c_str());
  previous_.clear();
}

// The owner is the target's.
void FileSink::CheckReplaceable(uid_t owner) const {
  struct stat folder {};
  if (stat(folder_.c_str(), &folder) != 0 || (folder.st_mode & S_ISVTX) == 0) return;
  const uid_t self = geteuid();
  if (self == 0 || self == owner || self == folder.st_uid) return;
  throw Error::System(
      EPERM, "cannot replace it (its folder is sticky, and the file is another user's)", target_);
}

// A hidden name in the target's folder that no other process chooses.
std::string FileSink::Sibling(const char* purpose, bool locked) const {
  const std::size_t slash = target_.rfind('/');
  const std::string base = slash == std::string::npos ? target_ : target_.substr(slash + 1);
  // The name is cut so that the suffix still fits.
  constexpr std::size_t kLongestBase = NAME_MAX - 48;
  constexpr std::size_t kDigits = 16;
  std::random_device random;
  std::string digits;
  while (digits.size() < kDigits) digits += "0123456789abcdef"[random() % 16];
  return folder_ + "/." + base.substr(0, kLongestBase) + "." + (locked ? mark_ : "unlocked") + "-" +
         digits + "." + purpose;
}

// A descriptor for SyncFolder. It is -1 if the folder is writable and not readable.
int FileSink::OpenFolder() const {
  const int folder =
      Retry([&] { return open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (folder == -1 && errno != EACCES) {
    throw Error::System(errno, "cannot open the folder of", target_);
  }
  return folder;
}

void FileSink::SyncFolder(int folder) {
  const char* const failed =
      restorable_
          ? "cannot flush the folder of"
          : "the new file has its name, and a power cut may take it: cannot flush the folder of";
  if (folder != -1) {
    // Some file systems cannot flush folders. That is not an error.
    if (Retry([&] { return fsync(folder); }) == 0 || errno == EINVAL) return;
    throw Error::System(errno, failed, target_);
  }
#if defined(__linux__)
  // Then all that the file system has is flushed.
  if (Retry([&] { return syncfs(fd_); }) != 0) throw Error::System(errno, failed, target_);
#endif
}

}  // namespace pyckpt
