// A file's bytes in memory, as they are on disk or as a copy that may be written to.
#ifndef PYCKPT_BASE_FILE_MAP_H_
#define PYCKPT_BASE_FILE_MAP_H_

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace pyckpt {

// The bytes are valid as long as the map lives. If another process shortens the file, reading
// the lost part ends this process with a bus error. Files that are replaced by renaming, as
// pyckpt does, are safe.
class FileMap {
 public:
  // Whether the memory may be written to. Writes go to a copy of the page, never to the file.
  enum class Writes { kForbidden, kToCopy };

  // Throws Error::System if the file does not exist, is no regular file, or cannot be read.
  FileMap(const std::string& path, Writes writes);
  // The first nbytes bytes of an open file, which may be closed afterwards. path is for messages.
  FileMap(int fd, std::uint64_t nbytes, Writes writes, const std::string& path);
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;
  ~FileMap();

  Span bytes() const { return {data_, nbytes_}; }
  std::uint8_t* data() const { return data_; }

 private:
  // Returns an error number, or 0.
  int Map(int fd, std::uint64_t nbytes, Writes writes);

  std::uint8_t* data_ = nullptr;
  std::size_t nbytes_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_FILE_MAP_H_
