// What a file that replaces another one takes over from it.
#ifndef PYCKPT_WRITE_FILE_ATTRIBUTES_H_
#define PYCKPT_WRITE_FILE_ATTRIBUTES_H_

#include <sys/stat.h>

#include <string>

namespace pyckpt {

// Gives the new file, open as fd, the owner, group, mode, access control list and user attributes
// (user.*) of the file at path, whose status is old. What the system or the file system does not
// permit is left out: some keep no modes, and only root may give files away. Without its group the
// file is not opened to another group. The set-user-ID and set-group-ID bits are never taken over.
void TakeOverAttributes(int fd, const std::string& path, const struct stat& old) noexcept;

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_FILE_ATTRIBUTES_H_
