#include "codec/gzip/encoder.h"

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/crc32.h"
#include "codec/gzip/chunk_index.h"
#include "codec/gzip/deflater.h"
#include "codec/gzip/member.h"
#include "codec/typed_codec.h"

namespace pyckpt::gzip {
namespace {

struct GzipChunk final : EncodedChunk {
  std::uint32_t crc = 0;  // of the raw bytes
};

class GzipEncoder final : public TypedEncoder<GzipChunk> {
 public:
  explicit GzipEncoder(int level) : deflater_(level) {}

 protected:
  void EncodeTyped(const Chunk& chunk, GzipChunk* out) override {
    out->raw_nbytes = chunk.nbytes;
    out->crc = chunk.Crc();
    out->UseBuffer(deflater_.Write(chunk, 0, &out->buffer));
  }

 private:
  Deflater deflater_;
};

class GzipJoiner final : public TypedJoiner<GzipChunk> {
 public:
  explicit GzipJoiner(IndexPlace index_place) : index_place_(index_place) {}

  std::string Begin() override { return Header(/*flags=*/0); }

  std::string End() override {
    const std::string index = EncodeChunkIndex(kHeaderNbytes, kChunkNbytes, code_nbytes_);
    if (index_place_ == IndexPlace::kOwnMember) {
      return LastBlock({}) + Trailer(crc_, nbytes_) + IndexMember(index);
    }
    Add(Crc32(AsSpan(index)), index.size());
    return LastBlock(index) + Trailer(crc_, nbytes_);
  }

 protected:
  void AppendTyped(GzipChunk* chunk) override {
    Add(chunk->crc, chunk->raw_nbytes);
    code_nbytes_.push_back(chunk->nbytes);
  }

 private:
  // Deflate, no time stamp (so that equal states give equal files), Unix.
  static std::string Header(char flags) { return {'\x1F', '\x8B', 8, flags, 0, 0, 0, 0, 0, 3}; }

  static std::string LastBlock(const std::string& stored) {
    std::string out = {'\x01'};
    AppendLe16(&out, static_cast<std::uint16_t>(stored.size()));
    AppendLe16(&out, static_cast<std::uint16_t>(~stored.size()));
    return out + stored;
  }

  static std::string Trailer(std::uint32_t crc, std::uint64_t nbytes) {
    std::string out;
    AppendLe32(&out, crc);
    AppendLe32(&out, static_cast<std::uint32_t>(nbytes));
    return out;
  }

  // A member without data, with index in an extra field.
  static std::string IndexMember(const std::string& index) {
    std::string out = Header(kExtraFlag);
    AppendLe16(&out, static_cast<std::uint16_t>(kSubfieldNbytes + index.size()));
    out += kSubfieldId;
    AppendLe16(&out, static_cast<std::uint16_t>(index.size()));
    return out + index + LastBlock({}) + Trailer(0, 0);
  }

  void Add(std::uint32_t crc, std::uint64_t nbytes) {
    crc_ = nbytes_ == 0 ? crc : Crc32Combine(crc_, crc, nbytes);
    nbytes_ += nbytes;
  }

  IndexPlace index_place_;
  std::uint32_t crc_ = 0;
  std::uint64_t nbytes_ = 0;
  std::vector<std::uint64_t> code_nbytes_;
};

}  // namespace

std::unique_ptr<EncodedChunk> GzipCodec::NewChunk() const { return std::make_unique<GzipChunk>(); }

std::unique_ptr<ChunkEncoder> GzipCodec::NewEncoder(int level) const {
  return std::make_unique<GzipEncoder>(level);
}

std::unique_ptr<StreamJoiner> GzipCodec::NewJoiner() const {
  return std::make_unique<GzipJoiner>(index_place_);
}

}  // namespace pyckpt::gzip
