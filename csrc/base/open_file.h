// A regular file that is open for reading.
#ifndef PYCKPT_BASE_OPEN_FILE_H_
#define PYCKPT_BASE_OPEN_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "base/supply.h"

namespace pyckpt {

class OpenFile {
 public:
  // Opens the file. Throws Error::System if it does not exist, is no regular file, or cannot be
  // read.
  explicit OpenFile(std::string path);
  // A file that is open already, and may be closed afterwards. name is for messages. With a supply,
  // bytes must be held before they are read.
  OpenFile(int fd, std::string name, std::shared_ptr<Supply> supply = nullptr);
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile();

  int fd() const { return fd_; }
  // As it was when the file was opened.
  std::uint64_t nbytes() const { return nbytes_; }
  const std::string& path() const { return path_; }
  // Null if all bytes are there.
  const std::shared_ptr<Supply>& supply() const { return supply_; }

 private:
  void Examine();

  std::string path_;
  int fd_;
  std::uint64_t nbytes_ = 0;
  std::shared_ptr<Supply> supply_;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_OPEN_FILE_H_
