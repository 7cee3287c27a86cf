// A file on disk as a Source.
#ifndef PYCKPT_BASE_FILE_SOURCE_H_
#define PYCKPT_BASE_FILE_SOURCE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "base/file_map.h"
#include "base/source.h"

namespace pyckpt {

class FileSource final : public Source {
 public:
  // Opens the file and asks for its size. Throws Error::System.
  explicit FileSource(std::string path);
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  ~FileSource() override;

  std::uint64_t nbytes() const { return nbytes_; }
  // The same bytes as a mapping, which stays when this is gone. Throws Error::System.
  std::shared_ptr<FileMap> Map() const;

  // Throws Error::System, also if the file has become shorter.
  void Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) override;

 private:
  std::string path_;
  int fd_ = -1;
  std::uint64_t nbytes_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_FILE_SOURCE_H_
