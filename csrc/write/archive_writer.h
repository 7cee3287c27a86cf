// Writes one archive: plans its members in the container's layout, and runs the pipeline, which
// writes them to a sink.
#ifndef PYCKPT_WRITE_ARCHIVE_WRITER_H_
#define PYCKPT_WRITE_ARCHIVE_WRITER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "codec/formats.h"
#include "container/tar_format.h"
#include "write/sink.h"
#include "write/stream_plan.h"

namespace pyckpt {

// One record of a torch zip file. Its bytes come from source, or from memory if source is null.
struct TensorRecord {
  std::string name;  // with its root folder: "archive/data/0"
  Span memory;
  std::shared_ptr<Source> source;
  std::uint64_t nbytes = 0;
  std::uint32_t element_nbytes = 1;
};

// A part of a member. Its bytes become the member's contents unchanged.
struct Segment {
  std::shared_ptr<Source> source;
  std::uint64_t nbytes = 0;
  std::uint32_t element_nbytes = 1;
};

struct ArchiveOptions {
  bool tar = false;              // if not, the file has one member, and nothing else
  const Codec* codec = nullptr;  // encodes the file as a whole; null: it is not compressed
  bool deflated = false;         // the member is a torch file, whose records are deflated
  int level = 0;
  int threads = 1;
  std::int64_t mtime = 0;  // of every member
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
};

// Add members in the order of the file, then Write, then Commit or Abandon. The sink is not opened
// before Write. Memory that records point to must stay valid and unchanged until Write
// returns. Not thread-safe, except progress().
class ArchiveWriter {
 public:
  // Throws kArgument if options ask for less than one thread, or for deflated records in something
  // else.
  ArchiveWriter(std::shared_ptr<Sink> sink, const ArchiveOptions& options);
  ArchiveWriter(const ArchiveWriter&) = delete;
  ArchiveWriter& operator=(const ArchiveWriter&) = delete;
  ~ArchiveWriter() = default;

  // Where a member's data is in the stream before compression: its offset, and its size in bytes.
  using Place = std::pair<std::uint64_t, std::uint64_t>;

  void AddDirectory(const std::string& name, std::uint32_t mode);
  Place AddBytes(const std::string& name, std::uint32_t mode, std::string bytes);
  Place AddFile(const std::string& name, std::uint32_t mode, const std::string& source_path);
  Place AddSegments(const std::string& name, std::uint32_t mode,
                    const std::vector<Segment>& segments);
  Place AddTorchFile(const std::string& name, std::uint32_t mode,
                     const std::vector<TensorRecord>& records);
  // Instead, if records are to be deflated. Its place in the file is not known before Write.
  void AddDeflatedTorchFile(const std::vector<TensorRecord>& records);

  // How far Write has come, in bytes before compression, including headers. Both numbers only
  // grow. The total is final once the last member is added. Thread-safe.
  struct Progress {
    std::uint64_t written_nbytes;
    std::uint64_t total_nbytes;
  };
  Progress progress() const { return {written_nbytes_, total_nbytes_}; }

  // Writes everything to the sink, and seals it. Returns the size in bytes of what it wrote. After
  // an error the sink is abandoned.
  std::uint64_t Write(const Poll& poll);

  // See Sink. Before Write, Commit throws kArgument, and the others do nothing.
  void Commit(bool keep_previous);
  void Keep() noexcept { sink_->Keep(); }
  void Restore() noexcept { sink_->Restore(); }
  void Abandon() noexcept;

 private:
  const Codec& codec() const;
  void AddData(const TensorRecord& record, StreamPlan::ChecksumId checksum);
  // Returns the place of the data, which follows.
  Place AddTarHeader(const std::string& name, TarType type, std::uint32_t mode,
                     std::uint64_t nbytes);
  void EndMember();
  std::uint64_t TarEndNbytes() const;

  std::shared_ptr<Sink> sink_;
  bool sealed_ = false;
  ArchiveOptions options_;
  StreamPlan plan_;
  std::unique_ptr<Codec> deflated_zip_;
  std::atomic<std::uint64_t> written_nbytes_{0};
  std::atomic<std::uint64_t> total_nbytes_{0};
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_ARCHIVE_WRITER_H_
