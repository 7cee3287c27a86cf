// The one error type of the core. Bindings turn it into a Python exception.
#ifndef PYCKPT_BASE_ERROR_H_
#define PYCKPT_BASE_ERROR_H_

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

namespace pyckpt {

enum class ErrorKind {
  kSystem,    // a system call failed: error_number() is its errno
  kArgument,  // the caller asked for something that cannot be written
  kCodec,     // a compression library failed
  kCorrupt,   // a file has bytes that no writer writes, at offset()
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : Error(kind, message, 0, "") {}

  // A system call failed. doing says what it was for: "cannot open". path is the file. In Python it
  // is an OSError with errno and path.
  static Error System(int error_number, const std::string& doing, const std::string& path) {
    return {ErrorKind::kSystem, doing + ": " + std::strerror(error_number), error_number, path};
  }

  // What waits is woken with this, because it would wait in vain: kSystem with ECANCELED. If there
  // is no memory for it, std::bad_alloc.
  static std::exception_ptr Stopped() noexcept {
    try {
      return std::make_exception_ptr(System(ECANCELED, "stopped", ""));
    } catch (...) {
      return std::current_exception();
    }
  }

  // The bytes at offset are wrong. message says what is wrong with them.
  static Error Corrupt(const std::string& message, std::uint64_t offset) {
    Error error(ErrorKind::kCorrupt, message);
    error.offset_ = offset;
    return error;
  }

  ErrorKind kind() const { return kind_; }
  int error_number() const { return error_number_; }
  const std::string& path() const { return path_; }
  // In bytes. Decoders count from the start of what they decode: of the file, mostly. The readers
  // of tar and zip count from the start of the decompressed stream, and CheckPickle() from the
  // start of the pickle.
  std::uint64_t offset() const { return offset_; }

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
