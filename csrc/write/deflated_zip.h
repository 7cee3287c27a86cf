// torch's zip file with deflated records, which torch.load reads as it reads stored ones. As a
// codec: the stream that it encodes is the data of all records, one after another, and headers,
// descriptors and the directory are made as the sizes of the codes become known.
#ifndef PYCKPT_WRITE_DEFLATED_ZIP_H_
#define PYCKPT_WRITE_DEFLATED_ZIP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codec/codec.h"
#include "codec/gzip/encoder.h"

namespace pyckpt {

// For one file. Records are deflated in chunks that are encoded on their own: zip_chunk_index.h. A
// record without data is stored.
class DeflatedZipCodec final : public Codec {
 public:
  struct Record {
    std::string name;
    std::uint64_t nbytes = 0;
  };

  explicit DeflatedZipCodec(std::vector<Record> records);

  std::size_t chunk_nbytes() const override { return gzip::kChunkNbytes; }
  std::unique_ptr<EncodedChunk> NewChunk() const override;
  // The codec must live as long as these.
  std::unique_ptr<ChunkEncoder> NewEncoder(int level) const override;
  std::unique_ptr<StreamJoiner> NewJoiner() const override;

 private:
  std::vector<Record> records_;
  std::vector<std::uint64_t> ends_;  // of the records in the stream
};

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_DEFLATED_ZIP_H_
