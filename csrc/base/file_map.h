// A file's bytes in memory, as they are on disk or as a copy that may be written to.
#ifndef PYCKPT_BASE_FILE_MAP_H_
#define PYCKPT_BASE_FILE_MAP_H_

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace pyckpt {

// The bytes stay valid as long as the map. A file that another process shortens
// meanwhile ends the process with a bus error when the lost part is read: files
// that are replaced by renaming, as pyckpt does, are safe.
class FileMap {
 public:
  // What writes do: nothing is ever written to the file.
  enum class Writes { kForbidden, kToCopy };

  // Throws Error::System: no such file, a folder, no right to read it.
  FileMap(const std::string& path, Writes writes);
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;
  ~FileMap();

  Span bytes() const { return {data_, nbytes_}; }
  std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t nbytes_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_FILE_MAP_H_
