// A file's bytes in memory, as they are on disk or as a copy that may be written to.
#ifndef PYCKPT_BASE_FILE_MAP_H_
#define PYCKPT_BASE_FILE_MAP_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/bytes.h"
#include "base/open_file.h"
#include "base/supply.h"

namespace pyckpt {

// The bytes are valid as long as the map lives. Those of a file with a supply must be held while
// they are read. If another process shortens the file, reading
// the lost part ends this process with a bus error. Files that are replaced by renaming, as
// pyckpt does, are safe.
class FileMap {
 public:
  // Whether the memory may be written to. Writes go to a copy of the page, never to the file.
  enum class Writes { kForbidden, kToCopy };

  // All of the file, which may be closed afterwards. Throws Error::System.
  FileMap(const OpenFile& file, Writes writes);
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;
  ~FileMap();

  Span bytes() const { return {data_, nbytes_}; }
  FileBytes file_bytes() const { return {bytes(), supply_.get()}; }
  // Null if all bytes are there.
  Supply* supply() const { return supply_.get(); }
  std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t nbytes_ = 0;
  std::shared_ptr<Supply> supply_;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_FILE_MAP_H_
