// Writes any bytes with any codec. Other libraries and our own reader have to decode
// the stream to the same bytes, and portable code has to write the same stream.
// Run by `make fuzz` with libFuzzer, AddressSanitizer and UBSan.
#include <libdeflate.h>
#include <lzma.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/crc32.h"
#include "base/error.h"
#include "byte_program.h"
#include "chunks_in_turn.h"
#include "codec/formats.h"
#include "codec/xz/literal_decoder.h"
#include "codec/xz/literals.h"
#include "portable_twin.h"
#include "read/open_image.h"
#include "read/stream_image.h"
#include "write/stream_plan.h"

namespace {

using pyckpt::Codec;
using pyckpt::Format;
using pyckpt::Span;
using pyckpt::fuzz::Bytes;
using pyckpt::fuzz::PortableTwin;

constexpr std::size_t kMostNbytes = 1'200'000;  // more than one chunk of any codec
constexpr std::size_t kMostChunks = 40;
constexpr std::size_t kHeadNbytes = 4;

void Require(bool holds) {
  if (!holds) std::abort();
}

// What the first kHeadNbytes of the input ask for. The rest is the program that makes bytes.
struct Task {
  const Format* format;
  int level;
  std::size_t chunk_nbytes;
  Bytes bytes;
};

Task TaskOf(Span input) {
  std::array<std::uint8_t, kHeadNbytes> head{};
  const std::size_t used = std::min(input.nbytes, head.size());
  std::copy_n(input.data, used, head.begin());
  Task task{};
  constexpr std::size_t kFirst = 1;  // the one before is .tar, which is not compressed
  const std::vector<const Format*> formats = pyckpt::TarFormats();
  task.format = formats[kFirst + head[0] % (formats.size() - kFirst)];
  const pyckpt::Levels& levels = task.format->levels.value();
  task.level = levels.lowest + head[1] % (levels.highest - levels.lowest + 1);
  // Mostly the codec's own size, which readers of gzip's chunk index rely on.
  task.chunk_nbytes = task.format->codec->chunk_nbytes();
  if (head[2] >= 128) {
    task.chunk_nbytes = std::min(task.chunk_nbytes, pyckpt::fuzz::SizeNearLimit(head[2]) + 1);
  }
  // Mostly few bytes, for speed.
  const std::size_t most_nbytes = head[3] >= 240 ? kMostNbytes : std::size_t{4096} << head[3] % 6;
  task.bytes = pyckpt::fuzz::RunProgram({input.data + used, input.nbytes - used},
                                        std::min(most_nbytes, kMostChunks * task.chunk_nbytes));
  return task;
}

struct Stream {
  std::string file;
  std::vector<pyckpt::CodeBlock> chunks;
};

// What the pipeline does, one chunk after another.
Stream WriteStream(const Task& task) {
  const std::vector<std::uint8_t>& raw = task.bytes.raw;
  pyckpt::StreamPlan plan;
  std::size_t at = 0;
  for (const pyckpt::fuzz::Part& part : task.bytes.parts) {
    plan.AddMemory({raw.data() + at, part.nbytes}, part.element_nbytes, plan.NewChecksum());
    at += part.nbytes;
  }
  const Codec& codec = *task.format->codec;
  const std::unique_ptr<pyckpt::ChunkEncoder> encoder = codec.NewEncoder(task.level);
  const std::unique_ptr<pyckpt::StreamJoiner> joiner = codec.NewJoiner();
  Stream stream;
  std::string& out = stream.file;
  out = joiner->Begin();
  pyckpt::Chunk chunk;
  const std::unique_ptr<pyckpt::EncodedChunk> code = codec.NewChunk();
  for (std::size_t offset = 0; offset < raw.size(); offset += task.chunk_nbytes) {
    plan.Read(offset, std::min(task.chunk_nbytes, raw.size() - offset), &chunk);
    plan.Join(chunk);
    encoder->Encode(chunk, code.get());
    joiner->Append(code.get());
    joiner->Settle(code.get());
    std::size_t nbytes = 0;
    for (const Span& span : code->spans) {
      out.append(reinterpret_cast<const char*>(span.data), span.nbytes);
      nbytes += span.nbytes;
    }
    Require(nbytes == code->nbytes);
    stream.chunks.push_back({8 * (out.size() - nbytes), 8 * nbytes, offset, chunk.nbytes});
  }
  out += joiner->End();
  return stream;
}

// ---- Readers ----------------------------------------------------------------

// gzip's chunk index follows the bytes, within the member.
std::vector<std::uint8_t> RoomFor(const Task& task) {
  return std::vector<std::uint8_t>(task.bytes.raw.size() + 65'536);
}

bool StartsWith(const std::vector<std::uint8_t>& out, std::size_t nbytes, const Task& task) {
  const std::vector<std::uint8_t>& raw = task.bytes.raw;
  return nbytes >= raw.size() && std::equal(raw.begin(), raw.end(), out.begin());
}

void ReadByZlib(Span file, const Task& task) {
  std::vector<std::uint8_t> out = RoomFor(task);
  z_stream zlib{};
  constexpr int kGzip = 31;  // 32 KiB window, gzip's header
  Require(inflateInit2(&zlib, kGzip) == Z_OK);
  zlib.next_in = const_cast<Bytef*>(file.data);  // zlib's field lacks the const
  zlib.avail_in = static_cast<uInt>(file.nbytes);
  zlib.next_out = out.data();
  zlib.avail_out = static_cast<uInt>(out.size());
  Require(inflate(&zlib, Z_FINISH) == Z_STREAM_END && zlib.avail_in == 0);
  Require(StartsWith(out, zlib.total_out, task));
  inflateEnd(&zlib);
}

void ReadByLibdeflate(Span file, const Task& task) {
  static libdeflate_decompressor* const decompressor = libdeflate_alloc_decompressor();
  std::vector<std::uint8_t> out = RoomFor(task);
  std::size_t used = 0;
  std::size_t got = 0;
  Require(libdeflate_gzip_decompress_ex(decompressor, file.data, file.nbytes, out.data(),
                                        out.size(), &used, &got) == LIBDEFLATE_SUCCESS);
  Require(used == file.nbytes && StartsWith(out, got, task));
}

void ReadByLiblzma(Span file, const Task& task) {
  std::vector<std::uint8_t> out = RoomFor(task);
  std::uint64_t memory_limit = UINT64_MAX;
  std::size_t used = 0;
  std::size_t got = 0;
  Require(lzma_stream_buffer_decode(&memory_limit, 0, nullptr, file.data, &used, file.nbytes,
                                    out.data(), &got, out.size()) == LZMA_OK);
  Require(used == file.nbytes && got == task.bytes.raw.size() && StartsWith(out, got, task));
}

void ReadByLibzstd(Span file, const Task& task) {
  static ZSTD_DCtx* const context = ZSTD_createDCtx();
  std::vector<std::uint8_t> out = RoomFor(task);
  const std::size_t got =
      ZSTD_decompressDCtx(context, out.data(), out.size(), file.data, file.nbytes);
  Require(got == task.bytes.raw.size() && StartsWith(out, got, task));
}

// The path of a file without a name that holds the bytes.
std::string PathOf(Span file) {
  static const int fd = memfd_create("fuzz", 0);
  Require(fd >= 0 && ftruncate(fd, 0) == 0 &&
          pwrite(fd, file.data, file.nbytes, 0) == static_cast<ssize_t>(file.nbytes));
  return "/proc/self/fd/" + std::to_string(fd);
}

void ReadByOurselves(Span file, const Task& task) {
  const auto image = pyckpt::OpenImage(std::make_shared<pyckpt::OpenFile>(PathOf(file)), {});
  const std::vector<std::uint8_t>& raw = task.bytes.raw;
  Require(image->Require({0, raw.size()}));
  Require(std::equal(raw.begin(), raw.end(), image->Address(0)));
  Require(image->Finish().empty());
}

// Our decoder of literals has to decode what our encoder of literals writes. The reader does not
// show that it does: it would leave to liblzma what it cannot decode.
void DecodeLiterals(const Task& task) {
  using pyckpt::xz::LiteralTask;
  constexpr std::size_t kMostBlocks = 20;  // more than there are lanes
  static pyckpt::xz::Lzma2LiteralEncoder encoder;
  static pyckpt::xz::Lzma2LiteralDecoder decoder;
  const std::vector<std::uint8_t>& raw = task.bytes.raw;
  constexpr std::size_t kMostNbytesHere = 20'000;  // for speed
  if (raw.size() > kMostNbytesHere) return;
  std::vector<std::vector<std::uint8_t>> codes;
  std::vector<LiteralTask> tasks;
  std::vector<std::uint8_t> out(raw.size());
  const std::size_t stride = raw.size() / kMostBlocks + 1;
  for (std::size_t at = 0; at < raw.size(); at += stride) {
    const Span block{raw.data() + at, std::min(stride, raw.size() - at)};
    codes.emplace_back(pyckpt::xz::Lzma2LiteralEncoder::Bound(block.nbytes));
    const std::uint32_t element_nbytes = 1U << (at + raw[at]) % 4;
    const pyckpt::xz::LiteralBits bits = pyckpt::xz::ChooseLiteralBits(block, element_nbytes);
    const std::uint8_t* end = encoder.Encode(block, bits, codes.back().data());
    LiteralTask& literals = tasks.emplace_back();
    literals.code = {codes.back().data(), static_cast<std::size_t>(end - codes.back().data())};
    literals.slack_nbytes = pyckpt::xz::LaneFeeder::kSlackNbytes;
    literals.out = out.data() + at;
    literals.out_nbytes = block.nbytes;
    codes.back().resize(literals.code.nbytes + literals.slack_nbytes);
    codes.back().shrink_to_fit();
    literals.code.data = codes.back().data();
  }
  decoder.Decode(&tasks);
  for (const LiteralTask& literals : tasks) Require(literals.decoded);
  Require(out == raw);
}

// Every block of xz has its own check. So damage is found where it is, and the other blocks, which
// are decoded in the same call, are right. A stream of one block is decoded from start to end. Its
// check is compared only when all of it is read, by Finish().
void ReadDamaged(std::string stream, std::size_t at, const Task& task) {
  stream[at % stream.size()] ^= 0x20;
  const std::vector<std::uint8_t>& raw = task.bytes.raw;
  try {
    if (!task.format->decompressor->OpenBlocks(pyckpt::AsSpan(stream))) return;
    const auto image =
        pyckpt::OpenImage(std::make_shared<pyckpt::OpenFile>(PathOf(pyckpt::AsSpan(stream))), {});
    pyckpt::FillResult result = image->Fill({{0, raw.size()}}, /*keep=*/true, /*checksums=*/false);
    std::uint64_t offset = 0;
    result.damages.push_back({{raw.size(), 0}, 0, ""});
    for (const pyckpt::Damage& damage : result.damages) {
      Require(damage.extent.offset >= offset);
      Require(std::equal(raw.begin() + offset, raw.begin() + damage.extent.offset,
                         image->Address(offset)));
      offset = damage.extent.offset + damage.extent.nbytes;
    }
  } catch (const pyckpt::Error& error) {
    Require(error.kind() == pyckpt::ErrorKind::kCorrupt);
  }
}

// Of the file as it is, and with a bit changed in one of its chunks.
void ReadInTurn(const Stream& stream) {
  if (stream.chunks.empty()) return;
  const pyckpt::CodeBlock& last = stream.chunks.back();
  const std::size_t end = (last.code_bit + last.code_nbits) / 8;
  pyckpt::fuzz::CheckChunksInTurn({pyckpt::AsSpan(stream.file).data, end}, stream.chunks);
  const std::size_t begin = stream.chunks.front().code_bit / 8;
  std::string broken = stream.file.substr(0, end);
  const std::size_t bit = pyckpt::Crc32(pyckpt::AsSpan(stream.file)) % (8 * (end - begin));
  broken[begin + bit / 8] = static_cast<char>(broken[begin + bit / 8] ^ 1 << bit % 8);
  pyckpt::fuzz::CheckChunksInTurn(pyckpt::AsSpan(broken), stream.chunks);
}

// ---- The test ---------------------------------------------------------------

// What the twin does too.
std::string WriteAndReadInTurn(const Task& task) {
  Stream stream = WriteStream(task);
  if (std::string(task.format->name) == "tar.gz") ReadInTurn(stream);
  return std::move(stream.file);
}

// Made by LLVMFuzzerInitialize().
std::unique_ptr<PortableTwin> twin;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  twin = std::make_unique<PortableTwin>(
      [](const std::string& input) { return WriteAndReadInTurn(TaskOf(pyckpt::AsSpan(input))); });
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t nbytes) {
  const Task task = TaskOf({data, nbytes});
  const std::string stream = WriteAndReadInTurn(task);
  const Span file = pyckpt::AsSpan(stream);
  const std::string name = task.format->name;
  if (name == "tar.gz") {
    ReadByZlib(file, task);
    ReadByLibdeflate(file, task);
  } else if (name == "tar.xz") {
    ReadByLiblzma(file, task);
    DecodeLiterals(task);
  } else if (name == "tar.zst") {
    ReadByLibzstd(file, task);
  }
  const bool own_chunks = task.chunk_nbytes == task.format->codec->chunk_nbytes();
  if (!task.bytes.raw.empty() && (name != "tar.gz" || own_chunks)) ReadByOurselves(file, task);
  if (name == "tar.xz" && !task.bytes.raw.empty()) {
    ReadDamaged(stream, nbytes * 0x9E3779B9 + data[nbytes - 1] * 0x101, task);
  }
  Require(twin->Ask({reinterpret_cast<const char*>(data), nbytes}) == stream);
  return 0;
}
