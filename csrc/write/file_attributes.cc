#include "write/file_attributes.h"

#include <unistd.h>

#if defined(__linux__)
#include <sys/xattr.h>
#endif

#include <cstring>
#include <vector>

namespace pyckpt {
namespace {

constexpr mode_t kPermissions = 0777;
constexpr mode_t kGroupPermissions = 0070;
constexpr int kGroupShift = 3;

// The mode bits for a file with another group: its group may do what everybody may.
mode_t WithoutGroup(mode_t mode) {
  return (mode & ~kGroupPermissions) | (mode & (mode << kGroupShift) & kGroupPermissions);
}

#if defined(__linux__)
constexpr const char* kAccessList = "system.posix_acl_access";

bool IsTakenOver(const char* name, bool same_group) {
  // The list's entry for the group is meant for the old one.
  if (std::strcmp(name, kAccessList) == 0) return same_group;
  return std::strncmp(name, "user.", 5) == 0;
}

void CopyAttribute(int fd, const std::string& path, const char* name) {
  const ssize_t nbytes = getxattr(path.c_str(), name, nullptr, 0);
  if (nbytes < 0) return;
  std::vector<char> value(static_cast<std::size_t>(nbytes));
  const ssize_t read = getxattr(path.c_str(), name, value.data(), value.size());
  if (read >= 0) fsetxattr(fd, name, value.data(), static_cast<std::size_t>(read), 0);
}

void CopyAttributes(int fd, const std::string& path, bool same_group) {
  const ssize_t nbytes = listxattr(path.c_str(), nullptr, 0);
  if (nbytes <= 0) return;
  std::vector<char> names(static_cast<std::size_t>(nbytes) + 1);  // ends with a NUL
  if (listxattr(path.c_str(), names.data(), names.size() - 1) <= 0) return;
  for (const char* name = names.data(); *name != '\0'; name += std::strlen(name) + 1) {
    if (IsTakenOver(name, same_group)) CopyAttribute(fd, path, name);
  }
}
#else
void CopyAttributes(int /*fd*/, const std::string& /*path*/, bool /*same_group*/) {}
#endif

}  // namespace

void TakeOverAttributes(int fd, const std::string& path, const struct stat& old) noexcept {
  struct stat made {};
  if (fstat(fd, &made) != 0) return;
  bool same_group = made.st_gid == old.st_gid;
  if (made.st_uid != old.st_uid || !same_group) {
    same_group = fchown(fd, old.st_uid, old.st_gid) == 0 ||
                 fchown(fd, static_cast<uid_t>(-1), old.st_gid) == 0 || same_group;
  }
  const mode_t mode = old.st_mode & kPermissions;
  if (fchmod(fd, same_group ? mode : WithoutGroup(mode)) != 0) return;
  try {
    CopyAttributes(fd, path, same_group);  // last: a mode would change the access control list
  } catch (...) {                          // no memory for them
    return;
  }
}

}  // namespace pyckpt
