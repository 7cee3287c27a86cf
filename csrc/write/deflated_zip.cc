#include "write/deflated_zip.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "base/crc32.h"
#include "codec/chunk.h"
#include "codec/gzip/deflater.h"
#include "codec/gzip/format.h"
#include "codec/typed_codec.h"
#include "container/zip_chunk_index.h"
#include "container/zip_format.h"

namespace pyckpt {
namespace {

constexpr std::size_t kSpareNbytes = std::size_t{64} << 10;

// The bytes of one record in a chunk.
struct Part {
  std::size_t raw_nbytes = 0;
  std::size_t code_nbytes = 0;
  std::uint32_t crc = 0;
};

struct ZipChunk final : EncodedChunk {
  std::vector<Part> parts;
  std::string headers;  // and descriptors, which the joiner puts between the codes
};

class ZipEncoder final : public TypedEncoder<ZipChunk> {
 public:
  ZipEncoder(const std::vector<std::uint64_t>& ends, int level) : ends_(ends), deflater_(level) {}

 protected:
  void EncodeTyped(const Chunk& chunk, ZipChunk* out) override {
    out->raw_nbytes = chunk.nbytes;
    out->parts.clear();
    out->buffer.Reserve(chunk.nbytes + kSpareNbytes);
    std::size_t used = 0;
    auto piece = chunk.pieces.begin();
    for (std::size_t done = 0; done < chunk.nbytes; done += part_.nbytes) {
      const std::uint64_t offset = chunk.offset + done;
      const std::uint64_t record_end = *std::upper_bound(ends_.begin(), ends_.end(), offset);
      part_.offset = offset;
      part_.nbytes = std::min<std::uint64_t>(chunk.nbytes - done, record_end - offset);
      part_.pieces.clear();
      // A piece is of one segment of the plan, and a segment of one record.
      for (std::size_t taken = 0; taken < part_.nbytes; taken += (piece++)->span.nbytes) {
        part_.pieces.push_back(*piece);
      }
      const std::size_t begin = std::exchange(used, deflater_.Write(part_, used, &out->buffer));
      out->parts.push_back({part_.nbytes, used - begin, part_.Crc()});
    }
    out->UseBuffer(used);
  }

 private:
  const std::vector<std::uint64_t>& ends_;
  gzip::Deflater deflater_;
  Chunk part_;
};

class ZipJoiner final : public TypedJoiner<ZipChunk> {
 public:
  explicit ZipJoiner(const std::vector<DeflatedZipCodec::Record>& records) : records_(records) {}

  std::string End() override {
    std::string out;
    OpenNext(&out);  // records without data at the end
    return out + ZipDirectory(placed_, crcs_);
  }

 protected:
  void AppendTyped(ZipChunk* chunk) override {
    chunk->headers.clear();
    spans_.clear();
    std::size_t code = 0;
    for (const Part& part : chunk->parts) {
      const std::size_t header = chunk->headers.size();
      if (!is_open_) OpenNext(&chunk->headers);
      spans_.push_back({false, header, chunk->headers.size() - header});
      spans_.push_back({true, code, part.code_nbytes});
      code += part.code_nbytes;
      const std::size_t after = chunk->headers.size();
      Add(part, &chunk->headers);
      spans_.push_back({false, after, chunk->headers.size() - after});
    }
    chunk->spans.clear();
    chunk->nbytes = 0;
    for (const Place& place : spans_) {
      if (place.nbytes == 0) continue;
      const std::uint8_t* bytes =
          place.is_code ? chunk->buffer.data() : AsSpan(chunk->headers).data;
      chunk->spans.push_back({bytes + place.begin, place.nbytes});
      chunk->nbytes += place.nbytes;
    }
  }

 private:
  // Bytes of a chunk's code, or of its headers.
  struct Place {
    bool is_code;
    std::size_t begin;
    std::size_t nbytes;
  };

  // Appends the headers of the records without data that come next, and that of the one behind
  // them.
  void OpenNext(std::string* out) {
    while (!is_open_ && placed_.size() < records_.size()) {
      const auto& [name, nbytes] = records_[placed_.size()];
      placed_.push_back(nbytes == 0 ? PlaceZipRecord(name, nbytes, end_offset_)
                                    : PlaceDeflatedRecord(name, nbytes, end_offset_));
      crcs_.push_back(0);
      out->append(ZipLocalHeader(placed_.back()));
      end_offset_ = placed_.back().end_offset();
      is_open_ = nbytes != 0;
    }
  }

  // Adds a part to the open record. Behind its last part, appends what ends it.
  void Add(const Part& part, std::string* out) {
    ZipRecord& record = placed_.back();
    crcs_.back() =
        raw_nbytes_ == 0 ? part.crc : Crc32Combine(crcs_.back(), part.crc, part.raw_nbytes);
    raw_nbytes_ += part.raw_nbytes;
    chunks_.push_back({part.raw_nbytes, part.code_nbytes});
    record.code_nbytes += part.code_nbytes;
    if (raw_nbytes_ != record.nbytes) return;
    out->append(gzip::kShortestLastBlock.begin(), gzip::kShortestLastBlock.end());
    record.code_nbytes += gzip::kShortestLastBlock.size();
    chunks_.back().code_nbytes += gzip::kShortestLastBlock.size();
    record.chunk_index = EncodeZipChunkIndex(chunks_);
    out->append(ZipDescriptor(record, crcs_.back()));
    end_offset_ = record.end_offset();
    is_open_ = false;
    raw_nbytes_ = 0;
    chunks_.clear();
  }

  const std::vector<DeflatedZipCodec::Record>& records_;
  std::vector<ZipRecord> placed_;
  std::vector<std::uint32_t> crcs_;
  std::uint64_t end_offset_ = 0;  // where the next record's header starts, once none is open
  // Of the last placed record, if it is open: not all of its data has been added.
  bool is_open_ = false;
  std::uint64_t raw_nbytes_ = 0;
  std::vector<DeflatedChunk> chunks_;
  std::vector<Place> spans_;
};

}  // namespace

DeflatedZipCodec::DeflatedZipCodec(std::vector<Record> records) : records_(std::move(records)) {
  std::uint64_t end = 0;
  ends_.reserve(records_.size());
  for (const Record& record : records_) ends_.push_back(end += record.nbytes);
}

std::unique_ptr<EncodedChunk> DeflatedZipCodec::NewChunk() const {
  return std::make_unique<ZipChunk>();
}

std::unique_ptr<ChunkEncoder> DeflatedZipCodec::NewEncoder(int level) const {
  return std::make_unique<ZipEncoder>(ends_, level);
}

std::unique_ptr<StreamJoiner> DeflatedZipCodec::NewJoiner() const {
  return std::make_unique<ZipJoiner>(records_);
}

}  // namespace pyckpt
