// A file on disk as a Source.
#ifndef PYCKPT_BASE_FILE_SOURCE_H_
#define PYCKPT_BASE_FILE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/open_file.h"
#include "base/source.h"

namespace pyckpt {

class FileSource final : public Source {
 public:
  explicit FileSource(std::shared_ptr<const OpenFile> file) : file_(std::move(file)) {}

  std::uint64_t nbytes() const { return file_->nbytes(); }
  const OpenFile& file() const { return *file_; }

  // Throws Error::System, also if the file has become shorter. The bytes of a file with a supply
  // must be held.
  void Read(std::uint64_t offset, std::size_t nbytes, std::uint8_t* out) override;

 private:
  std::shared_ptr<const OpenFile> file_;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_FILE_SOURCE_H_
