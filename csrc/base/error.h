// The one error type of the core. Bindings turn it into a Python exception.
#ifndef PYCKPT_BASE_ERROR_H_
#define PYCKPT_BASE_ERROR_H_

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pyckpt {

enum class ErrorKind {
  kSystem,    // a system call failed: error_number() is its errno
  kArgument,  // the caller asked for something that cannot be written
  kCodec,     // a compression library refused
  kCorrupt,   // a file holds what no writer writes: offset() is where
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : Error(kind, message, 0, "") {}

  // A system call failed: what was being done, with which errno, on which file. As a Python
  // OSError it shows errno and path.
  static Error System(int error_number, const std::string& doing, const std::string& path) {
    return {ErrorKind::kSystem, doing + ": " + std::strerror(error_number), error_number, path};
  }

  // What is wrong with a file's bytes, and where they begin to be wrong.
  static Error Corrupt(const std::string& message, std::uint64_t offset) {
    Error error(ErrorKind::kCorrupt, message);
    error.offset_ = offset;
    return error;
  }

  ErrorKind kind() const { return kind_; }
  int error_number() const { return error_number_; }
  const std::string& path() const { return path_; }
  std::uint64_t offset() const { return offset_; }  // in bytes from the file's start

 private:
  Error(ErrorKind kind, const std::string& message, int error_number, std::string path)
      : std::runtime_error(message),
        kind_(kind),
        error_number_(error_number),
        path_(std::move(path)) {}

  ErrorKind kind_;
  int error_number_;
  std::string path_;
  std::uint64_t offset_ = 0;
};

}  // namespace pyckpt

#endif  // PYCKPT_BASE_ERROR_H_
