#include "codec/xz/stream_index.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>

#include "base/error.h"
#include "codec/xz/coder.h"

namespace pyckpt::xz {
namespace {

// LZMA cannot expand more than this: a match of 273 bytes takes at least fourteen decisions of
// 0.022 bits each.
constexpr std::uint64_t kMostExpansion = 8192;

using Index = std::unique_ptr<lzma_index, void (*)(lzma_index*)>;

// Reads the index in [begin, end) of the file. end is where the stream's footer begins.
Index ReadIndex(Span file, std::uint64_t begin, std::uint64_t end) {
  lzma_index* index = nullptr;
  // An index may claim any number of entries. Each takes at least two bytes of the file, which
  // limits the memory that is really needed.
  std::uint64_t memory = lzma_index_memusage(1, (end - begin) / 2);
  std::size_t at = begin;
  RequireDecoded(lzma_index_buffer_decode(&index, &memory, nullptr, file.data, &at, end),
                 "an index", begin);
  Index owner(index, [](lzma_index* owned) { lzma_index_end(owned, nullptr); });
  if (at != end) throw Error::Corrupt("xz: an index is shorter than its footer says", begin);
  return owner;
}

// Adds the stream that ends at byte end to layout, its last block first. Returns where the stream
// begins.
std::uint64_t ReadStream(const FileBytes& stored, std::uint64_t end, Layout* layout) {
  const Span file = stored.bytes();
  constexpr std::uint64_t kFrame = LZMA_STREAM_HEADER_SIZE;  // of a header, and of a footer too
  if (end < 2 * kFrame) throw Error::Corrupt("xz: the file is cut off", end);
  stored.Need(end - kFrame, kFrame);
  lzma_stream_flags footer{};
  RequireDecoded(lzma_stream_footer_decode(&footer, file.data + end - kFrame), "a stream's footer",
                 end - kFrame);
  if (lzma_check_is_supported(footer.check) == 0) {
    throw Error::Corrupt("xz: checks of an unknown kind", end - kFrame);
  }
  if (footer.backward_size > end - 2 * kFrame) {
    throw Error::Corrupt("xz: a stream's footer is damaged", end - kFrame);
  }
  const std::uint64_t index_begin = end - kFrame - footer.backward_size;
  stored.Need(index_begin, footer.backward_size);
  const Index index = ReadIndex(file, index_begin, end - kFrame);
  const std::uint64_t blocks_nbytes = lzma_index_total_size(index.get());
  if (blocks_nbytes > index_begin - kFrame) {
    throw Error::Corrupt("xz: an index lists more bytes than the file has", index_begin);
  }
  const std::uint64_t begin = index_begin - blocks_nbytes - kFrame;
  stored.Need(begin, kFrame);
  lzma_stream_flags header{};
  RequireDecoded(lzma_stream_header_decode(&header, file.data + begin), "a stream's header", begin);
  RequireDecoded(lzma_stream_flags_compare(&header, &footer), "a stream's header", begin);

  layout->checks.push_back({begin, footer.check});
  std::vector<CodeBlock>* blocks = &layout->blocks;
  const std::size_t before = blocks->size();
  lzma_index_iter iter;
  lzma_index_iter_init(&iter, index.get());
  while (lzma_index_iter_next(&iter, LZMA_INDEX_ITER_BLOCK) == 0) {
    CodeBlock block;
    block.code_bit = (begin + iter.block.compressed_stream_offset) * 8;
    block.code_nbits = iter.block.unpadded_size * 8;
    block.raw_nbytes = iter.block.uncompressed_size;
    if (block.raw_nbytes > iter.block.unpadded_size * kMostExpansion) {
      throw Error::Corrupt("xz: an index lists a block of more bytes than its code can hold",
                           index_begin);
    }
    blocks->push_back(block);
  }
  std::reverse(blocks->begin() + static_cast<std::ptrdiff_t>(before), blocks->end());
  return begin;
}

// Where the padding begins that ends at byte end.
std::uint64_t BeforeZeros(const FileBytes& stored, std::uint64_t end) {
  constexpr std::uint64_t kStepNbytes = std::uint64_t{64} << 10;
  const std::uint8_t* file = stored.bytes().data;
  std::uint64_t begin = end;
  for (; end >= 4; end -= 4) {
    if (end - 4 < begin) {
      begin = end - std::min(end, kStepNbytes);
      stored.Need(begin, end - begin);
    }
    if (LoadLe32(file + end - 4) != 0) break;
  }
  return end;
}

// The layout if the streams, and the padding after them, are the file's bytes up to end.
Layout ReadStreamsUpTo(const FileBytes& file, std::uint64_t end) {
  Layout layout;
  layout.used_nbytes = end;
  while (end > 0) {
    end = BeforeZeros(file, end);
    end = ReadStream(file, end, &layout);
  }
  std::reverse(layout.blocks.begin(), layout.blocks.end());
  std::reverse(layout.checks.begin(), layout.checks.end());
  std::uint64_t raw_offset = 0;
  for (CodeBlock& block : layout.blocks) {
    block.raw_offset = raw_offset;
    raw_offset += block.raw_nbytes;
  }
  return layout;
}

// The end of the last stream before end, judged by its footer; 0 if there is none. Streams are
// multiples of four bytes long.
std::uint64_t LastFooterEnd(Span file, std::uint64_t end) {
  lzma_stream_flags footer{};
  for (end = end / 4 * 4; end >= LZMA_STREAM_HEADER_SIZE; end -= 4) {
    if (file.data[end - 2] == 'Y' && file.data[end - 1] == 'Z' &&
        lzma_stream_footer_decode(&footer, file.data + end - LZMA_STREAM_HEADER_SIZE) == LZMA_OK) {
      return end;
    }
  }
  return 0;
}

}  // namespace

bool HasMagic(Span file, std::uint64_t at) {
  constexpr std::array<std::uint8_t, 6> kMagic = {0xFD, '7', 'z', 'X', 'Z', 0};
  return file.nbytes - at >= kMagic.size() &&
         std::equal(kMagic.begin(), kMagic.end(), file.data + at);
}

Layout ReadStreams(const FileBytes& stored) {
  const Span file = stored.bytes();
  try {
    return ReadStreamsUpTo(stored, file.nbytes);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kCorrupt) throw;
    stored.NeedAll();
    const std::uint64_t end = LastFooterEnd(file, file.nbytes);
    if (end == 0 || end == file.nbytes) throw;
    // A stream that is damaged or cut off is not taken for something else.
    std::uint64_t next = end;
    while (file.nbytes - next >= 4 && LoadLe32(file.data + next) == 0) next += 4;
    if (HasMagic(file, next)) throw;
    return ReadStreamsUpTo(stored, end);
  }
}

}  // namespace pyckpt::xz
