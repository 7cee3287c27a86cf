#include "codec/xz/block_decoder.h"

#include <lzma.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>

#include "base/error.h"

namespace pyckpt::xz {
namespace {

// A block's header. liblzma allocates the options of its filters with malloc().
class Header {
 public:
  Header() { chain_.fill({LZMA_VLI_UNKNOWN, nullptr}); }
  Header(const Header&) = delete;
  Header& operator=(const Header&) = delete;
  ~Header() {
    for (const lzma_filter& filter : chain_) std::free(filter.options);
  }

  // Throws Corrupt if the header is damaged or does not match the index.
  void Read(Span file, const CodeBlock& block, lzma_check check) {
    begin_ = block.code_bit / 8;
    const std::uint64_t unpadded = block.code_nbits / 8;
    fields_.version = 1;
    fields_.check = check;
    fields_.filters = chain_.data();
    const std::uint8_t size_byte = file.data[begin_];
    fields_.header_size = lzma_block_header_size_decode(size_byte);
    if (size_byte == 0 || fields_.header_size >= unpadded) {
      throw Error::Corrupt("xz: no block begins where the index says", begin_);
    }
    RequireDecoded(lzma_block_header_decode(&fields_, nullptr, file.data + begin_),
                   "a block header", begin_);
    RequireDecoded(lzma_block_compressed_size(&fields_, unpadded), "a block header", begin_);
    if (fields_.uncompressed_size != LZMA_VLI_UNKNOWN &&
        fields_.uncompressed_size != block.raw_nbytes) {
      throw Error::Corrupt("xz: a block's size does not match the index", begin_);
    }
    fields_.uncompressed_size = block.raw_nbytes;
    nbytes_ = unpadded + PaddingTo(unpadded, 4);
  }

  const lzma_block& fields() const { return fields_; }
  std::uint64_t begin() const { return begin_; }  // of the block, in the file
  std::uint64_t code_begin() const { return begin_ + fields_.header_size; }
  std::uint64_t end() const { return begin_ + nbytes_; }  // of the block with its check
  std::size_t raw_nbytes() const { return fields_.uncompressed_size; }

  // Whether our encoder writes such headers before literals.
  bool SeemsLiteral() const {
    return chain_[0].id == LZMA_FILTER_LZMA2 && chain_[1].id == LZMA_VLI_UNKNOWN &&
           static_cast<const lzma_options_lzma*>(chain_[0].options)->dict_size ==
               LZMA_DICT_SIZE_MIN;
  }

  // A block refers only to itself, so the dictionary need not be larger than the block.
  void LimitDictionary() {
    for (const lzma_filter& filter : chain_) {
      if (filter.id != LZMA_FILTER_LZMA2) continue;
      auto* options = static_cast<lzma_options_lzma*>(filter.options);
      const std::uint64_t enough = std::max<std::uint64_t>(raw_nbytes(), LZMA_DICT_SIZE_MIN);
      options->dict_size =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(options->dict_size, enough));
    }
  }

 private:
  std::array<lzma_filter, LZMA_FILTERS_MAX + 1> chain_{};
  lzma_block fields_{};
  std::uint64_t begin_ = 0;
  std::uint64_t nbytes_ = 0;
};

LiteralTask AsLiterals(Span file, const Header& header, std::uint8_t* out) {
  LiteralTask task;
  const std::uint64_t begin = header.code_begin();
  task.code = {file.data + begin, static_cast<std::size_t>(header.fields().compressed_size)};
  task.slack_nbytes = file.nbytes - begin - task.code.nbytes;
  task.out = out;
  task.out_nbytes = header.raw_nbytes();
  return task;
}

// Whether what was decoded matches the block's check, and the block ends as it should.
bool Matches(const LiteralTask& task, lzma_check kind) {
  const std::uint8_t* code_end = task.code.data + task.code.nbytes;
  const std::uint8_t* check = code_end + PaddingTo(task.code.nbytes, 4);
  if (std::any_of(code_end, check, [](std::uint8_t byte) { return byte != 0; })) return false;
  if (kind == LZMA_CHECK_CRC32) {
    return LoadLe32(check) == lzma_crc32(task.out, task.out_nbytes, 0);
  }
  return kind == LZMA_CHECK_CRC64 && LoadLe64(check) == lzma_crc64(task.out, task.out_nbytes, 0);
}

void DecodeWithLiblzma(Span file, Header* header, std::uint8_t* out, Coder* coder) {
  header->LimitDictionary();
  lzma_block fields = header->fields();
  lzma_stream& stream = coder->stream;
  RequireDecoded(lzma_block_decoder(&stream, &fields), "a block header", header->begin());
  stream.next_in = file.data + header->code_begin();
  stream.avail_in = header->end() - header->code_begin();
  stream.next_out = out;
  stream.avail_out = header->raw_nbytes();
  lzma_ret status = LZMA_OK;
  while (status == LZMA_OK) status = lzma_code(&stream, LZMA_FINISH);
  RequireDecoded(status, "a block", header->begin());
  if (stream.avail_in != 0 || stream.avail_out != 0) {
    throw Error::Corrupt("xz: a block's size does not match the index", header->begin());
  }
}

}  // namespace

DecodedBlock XzBlockDecoder::Decode(Span file, const CodeBlock& block, std::uint8_t* out,
                                    std::size_t capacity) {
  if (capacity < block.raw_nbytes) {
    throw Error(ErrorKind::kArgument, "xz: a block needs more room");
  }
  std::vector<BlockTask> tasks(1);
  tasks[0].block = block;
  tasks[0].out = out;
  DecodeInTurn(file, &tasks);
  if (tasks[0].damage) throw Error(*tasks[0].damage);
  return tasks[0].decoded;
}

void XzBlockDecoder::DecodeInTurn(Span file, std::vector<BlockTask>* tasks) {
  std::vector<Header> headers(tasks->size());
  std::vector<LiteralTask> literals;
  for (std::size_t i = 0; i < headers.size(); ++i) {
    BlockTask& task = (*tasks)[i];
    const lzma_check check = CheckAt(task.block.code_bit / 8);
    if (!Succeeds(&task, [&] { headers[i].Read(file, task.block, check); })) continue;
    if (headers[i].SeemsLiteral()) literals.push_back(AsLiterals(file, headers[i], task.out));
  }
  literals_.Decode(&literals);
  auto literal = literals.begin();
  for (std::size_t i = 0; i < headers.size(); ++i) {
    BlockTask& task = (*tasks)[i];
    Header& header = headers[i];
    if (task.damage) continue;
    const bool is_done =
        header.SeemsLiteral() && literal->decoded && Matches(*literal, header.fields().check);
    if (header.SeemsLiteral()) ++literal;
    if (!is_done &&
        !Succeeds(&task, [&] { DecodeWithLiblzma(file, &header, task.out, &coder_); })) {
      continue;
    }
    task.decoded = {header.raw_nbytes(), header.end() * 8, 0};
  }
}

lzma_check XzBlockDecoder::CheckAt(std::uint64_t begin) const {
  const auto after = std::upper_bound(
      checks_->begin(), checks_->end(), begin,
      [](std::uint64_t at, const StreamCheck& stream) { return at < stream.begin; });
  return std::prev(after)->check;
}

}  // namespace pyckpt::xz
