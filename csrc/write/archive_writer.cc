#include "write/archive_writer.h"

#include <utility>

#include "base/error.h"
#include "base/file_source.h"
#include "base/open_file.h"
#include "container/zip_format.h"
#include "write/deflated_zip.h"
#include "write/pipeline.h"

namespace pyckpt {

ArchiveWriter::ArchiveWriter(std::shared_ptr<Sink> sink, const ArchiveOptions& options)
    : sink_(std::move(sink)), options_(options) {
  if (options_.threads < 1) throw Error(ErrorKind::kArgument, "at least one thread is needed");
  if (options_.deflated && (options_.tar || options_.codec != nullptr)) {
    throw Error(ErrorKind::kArgument, "deflated records are not for this file");
  }
}

ArchiveWriter::Place ArchiveWriter::AddTarHeader(const std::string& name, TarType type,
                                                 std::uint32_t mode, std::uint64_t nbytes) {
  if (options_.deflated) {
    throw Error(ErrorKind::kArgument, "only a torch file has records to deflate");
  }
  if (!options_.tar) return {plan_.nbytes(), nbytes};
  TarEntry entry;
  entry.name = name;
  entry.type = type;
  entry.mode = mode;
  entry.nbytes = nbytes;
  entry.mtime = options_.mtime;
  entry.uid = options_.uid;
  entry.gid = options_.gid;
  plan_.AddBytes(TarHeader(entry));
  return {plan_.nbytes(), nbytes};
}

void ArchiveWriter::EndMember() {
  if (options_.tar) plan_.AddZeros(PaddingTo(plan_.nbytes(), kTarBlockNbytes));
  total_nbytes_ = plan_.nbytes() + TarEndNbytes();
}

std::uint64_t ArchiveWriter::TarEndNbytes() const {
  if (!options_.tar) return 0;
  return kTarEndNbytes + PaddingTo(plan_.nbytes() + kTarEndNbytes, kTarRecordNbytes);
}

void ArchiveWriter::AddDirectory(const std::string& name, std::uint32_t mode) {
  AddTarHeader(name, TarType::kDirectory, mode, 0);
  EndMember();
}

ArchiveWriter::Place ArchiveWriter::AddBytes(const std::string& name, std::uint32_t mode,
                                             std::string bytes) {
  const Place place = AddTarHeader(name, TarType::kFile, mode, bytes.size());
  plan_.AddBytes(std::move(bytes));
  EndMember();
  return place;
}

ArchiveWriter::Place ArchiveWriter::AddFile(const std::string& name, std::uint32_t mode,
                                            const std::string& source_path) {
  auto source = std::make_shared<FileSource>(std::make_shared<OpenFile>(source_path));
  const std::uint64_t nbytes = source->nbytes();
  const Place place = AddTarHeader(name, TarType::kFile, mode, nbytes);
  plan_.AddSource(std::move(source), nbytes, 1, StreamPlan::kNoChecksum);
  EndMember();
  return place;
}

ArchiveWriter::Place ArchiveWriter::AddSegments(const std::string& name, std::uint32_t mode,
                                                const std::vector<Segment>& segments) {
  std::uint64_t nbytes = 0;
  for (const Segment& s : segments) nbytes += s.nbytes;
  const Place place = AddTarHeader(name, TarType::kFile, mode, nbytes);
  for (const Segment& s : segments) {
    plan_.AddSource(s.source, s.nbytes, s.element_nbytes, StreamPlan::kNoChecksum);
  }
  EndMember();
  return place;
}

ArchiveWriter::Place ArchiveWriter::AddTorchFile(const std::string& name, std::uint32_t mode,
                                                 const std::vector<TensorRecord>& records) {
  std::vector<ZipRecord> placed;
  placed.reserve(records.size());
  for (const TensorRecord& r : records) {
    placed.push_back(
        PlaceZipRecord(r.name, r.nbytes, placed.empty() ? 0 : placed.back().end_offset()));
  }
  const std::uint64_t directory_nbytes = ZipDirectoryNbytes(placed);
  const Place place =
      AddTarHeader(name, TarType::kFile, mode,
                   (placed.empty() ? 0 : placed.back().end_offset()) + directory_nbytes);

  std::vector<StreamPlan::ChecksumId> checksums;
  checksums.reserve(records.size());
  for (std::size_t i = 0; i < records.size(); ++i) {
    const TensorRecord& r = records[i];
    const StreamPlan::ChecksumId checksum = plan_.NewChecksum();
    checksums.push_back(checksum);
    plan_.AddBytes(ZipLocalHeader(placed[i]));
    AddData(r, checksum);
    plan_.AddDeferred(ZipDescriptorNbytes(placed[i]), [this, record = placed[i], checksum] {
      return ZipDescriptor(record, plan_.checksum(checksum));
    });
  }
  plan_.AddDeferred(directory_nbytes,
                    [this, placed = std::move(placed), checksums = std::move(checksums)] {
                      std::vector<std::uint32_t> crcs;
                      crcs.reserve(checksums.size());
                      for (const auto id : checksums) crcs.push_back(plan_.checksum(id));
                      return ZipDirectory(placed, crcs);
                    });
  EndMember();
  return place;
}

void ArchiveWriter::AddDeflatedTorchFile(const std::vector<TensorRecord>& records) {
  if (!options_.deflated || deflated_zip_) {
    throw Error(ErrorKind::kArgument, "deflated records are not for this file");
  }
  std::vector<DeflatedZipCodec::Record> sizes;
  sizes.reserve(records.size());
  for (const TensorRecord& r : records) {
    sizes.push_back({r.name, r.nbytes});
    AddData(r, StreamPlan::kNoChecksum);
  }
  deflated_zip_ = std::make_unique<DeflatedZipCodec>(std::move(sizes));
  total_nbytes_ = plan_.nbytes();
}

void ArchiveWriter::AddData(const TensorRecord& r, StreamPlan::ChecksumId checksum) {
  if (r.source) {
    plan_.AddSource(r.source, r.nbytes, r.element_nbytes, checksum);
  } else {
    plan_.AddMemory({r.memory.data, r.nbytes}, r.element_nbytes, checksum);
  }
}

const Codec& ArchiveWriter::codec() const {
  if (deflated_zip_) return *deflated_zip_;
  return options_.codec == nullptr ? StoreCodec() : *options_.codec;
}

std::uint64_t ArchiveWriter::Write(const Poll& poll) {
  plan_.AddZeros(TarEndNbytes());
  total_nbytes_ = plan_.nbytes();
  try {
    sink_->Open(plan_.nbytes());
    if (codec().stores()) sink_->Reserve(plan_.nbytes());
    std::uint64_t nbytes = 0;
    sink_->Run(
        [&](const Poll& sink_poll) {
          nbytes = RunPipeline(&plan_, codec(), options_.level, options_.threads, sink_.get(),
                               sink_poll, &written_nbytes_);
        },
        poll);
    sink_->Seal(nbytes);
    sealed_ = true;
    return nbytes;
  } catch (...) {
    Abandon();
    throw;
  }
}

void ArchiveWriter::Commit(bool keep_previous) {
  if (!sealed_) throw Error(ErrorKind::kArgument, "nothing has been written yet");
  sink_->Commit(keep_previous);
}

void ArchiveWriter::Abandon() noexcept {
  sealed_ = false;
  sink_->Abandon();
}

}  // namespace pyckpt
