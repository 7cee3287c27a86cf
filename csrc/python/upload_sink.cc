#include "python/upload_sink.h"

#include <unistd.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "python/raise_soon.h"
#include "write/ordered_sink.h"

namespace py = pybind11;

namespace pyckpt {
namespace {

class UploadSink final : public Sink {
 public:
  explicit UploadSink(py::object upload)
      : upload_(std::move(upload)), ordered_([this](Span piece) { WritePiece(piece); }) {}

  // Whoever drops a sink wants nothing of it to appear. A file object of Python, left to itself,
  // would publish what it has got so far.
  ~UploadSink() override {
    if (getpid() == owner_) {
      try {
        const py::gil_scoped_acquire gil;
        const py::error_scope under_way;
        auto interrupt = CallToTheEnd("abandon");
        upload_ = {};
        if (interrupt) RaiseSoon(&*interrupt, "abandoning an upload");
        return;
      } catch (...) {  // this thread cannot have the GIL: rather leave the object behind
      }
    }
    static_cast<void>(upload_.release());  // a forked process: the upload is its parent's
  }

  void Open(std::uint64_t most_nbytes) override {
    ordered_.Open(most_nbytes);
    Call("open", most_nbytes);
  }

  void Run(const Work& work, const Poll& poll) override { ordered_.Run(work, poll); }

  void WriteAt(std::uint64_t offset, const std::vector<Span>& spans) override {
    ordered_.WriteAt(offset, spans);
  }

  void Stop() noexcept override { ordered_.Stop(); }

  void Seal(std::uint64_t nbytes) override { Call("seal", nbytes); }

  void Commit(bool keep_previous) override { Call("commit", keep_previous); }

  void Keep() noexcept override { CallQuietly("keep"); }

  void Restore() noexcept override { CallQuietly("restore"); }

  void Abandon() noexcept override { CallQuietly("abandon"); }

 private:
  void WritePiece(Span piece) {
    const py::gil_scoped_acquire gil;
    const py::memoryview view =
        py::memoryview::from_memory(piece.data, static_cast<py::ssize_t>(piece.nbytes));
    upload_.attr("write")(view);
    view.attr("release")();  // fails if somebody still uses it
  }

  template <typename... Arguments>
  void Call(const char* method, const Arguments&... arguments) {
    const py::gil_scoped_acquire gil;
    upload_.attr(method)(arguments...);
  }

  // The exception that may be under way stays the one that Python sees.
  void CallQuietly(const char* method) noexcept {
    try {
      const py::gil_scoped_acquire gil;
      const py::error_scope under_way;
      if (auto interrupt = CallToTheEnd(method)) RaiseSoon(&*interrupt, "ending an upload");
    } catch (...) {  // NOLINT(bugprone-empty-catch): this thread cannot have the GIL
    }
  }

  // Calls the method again if an interrupt has ended it. Returns the interrupt.
  std::optional<py::error_already_set> CallToTheEnd(const char* method) {
    std::optional<py::error_already_set> interrupt;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      try {
        upload_.attr(method)();
        break;
      } catch (const py::error_already_set& error) {
        if (!interrupt) interrupt.emplace(error);
      }
    }
    return interrupt;
  }

  static constexpr int kAttempts = 2;

  const pid_t owner_ = getpid();
  py::object upload_;
  OrderedSink ordered_;
};

}  // namespace

std::shared_ptr<Sink> NewUploadSink(py::object upload) {
  return std::make_shared<UploadSink>(std::move(upload));
}

}  // namespace pyckpt
