#include "codec/gzip/chunk_inflater.h"

#include <algorithm>
#include <cstring>

#include "base/crc32.h"
#include "codec/gzip/format.h"

namespace pyckpt::gzip {
namespace {

// With fewer rounds left than this, because a chunk's code or room ends, its symbols are walked.
constexpr std::size_t kFewRounds = 4;
// The checksum is taken of about so many bytes at a time, while they are in the L2 cache.
constexpr std::ptrdiff_t kSumNbytes = 16 << 10;
constexpr std::size_t kMostRounds = kSumNbytes / kMostInRound;

// Whether a block has more than one match for so many bytes that libdeflate takes less time for it.
// An encoder gives a code of n bits to what makes up about 2^-n of all symbols.
bool HasFrequentMatches(const BlockHeader& header) {
  constexpr std::uint64_t kNbytesOfMatch = 24;
  const auto share = [&](std::size_t symbol) {
    const unsigned length = header.lengths[symbol];
    return length == 0 ? 0 : std::uint64_t{1} << (kLongest - length);
  };
  std::uint64_t nbytes = 0;
  for (std::size_t s = 0; s < kLiterals; ++s) nbytes += share(s);
  std::uint64_t matches = 0;
  for (std::size_t s = kEndOfBlock + 1; s < header.literals; ++s) {
    const std::size_t length = s - kEndOfBlock - 1;
    if (length >= kLengthSymbols) break;
    matches += share(s);
    nbytes += share(s) * kLengthBase[length];
  }
  return matches * kNbytesOfMatch > nbytes;
}

// Copies nbytes bytes to out from distance bytes before it. room is what may be written to at out.
void CopyFromBefore(std::size_t distance, std::size_t nbytes, std::size_t room, std::uint8_t* out) {
  constexpr std::size_t kWord = 8;
  constexpr std::size_t kStep = 16;
  if (room < nbytes + kStep) {
    const std::uint8_t* from = out - distance;
    for (std::size_t i = 0; i < nbytes; ++i) out[i] = from[i];
    return;
  }
  std::uint8_t* const end = out + nbytes;
  if (distance >= kStep) {
    for (; out < end; out += kStep) std::memcpy(out, out - distance, kStep);
  } else if (distance > kWord) {
    for (; out < end; out += kWord) std::memcpy(out, out - distance, kWord);
  } else {  // a period that is in one word
    std::uint64_t word = LoadLe64(out - distance);
    if (distance < kWord) word &= (std::uint64_t{1} << (8 * distance)) - 1;
    for (std::size_t n = distance; n < kWord; n *= 2) word |= word << (8 * n);
    for (const std::size_t step = kWord - kWord % distance; out < end; out += step) {
      StoreLe64(out, word);
    }
  }
}

}  // namespace

std::vector<BlockTask*> ChunkInflater::Inflate(Span file, std::vector<BlockTask>* tasks) {
  std::vector<BlockTask*> refused;
  in_use_ = 0;
  for (std::size_t next = 0; next < tasks->size() || in_use_ > 0;) {
    while (in_use_ < kLanes && next < tasks->size()) Start(file, &(*tasks)[next++]);
    OpenBlocks(&refused);
    if (in_use_ > 0) DecodeLiterals(file);
  }
  return refused;
}

void ChunkInflater::Start(Span file, BlockTask* task) {
  Chunk& chunk = chunks_[in_use_];
  const std::uint64_t begin = task->block.code_bit / 8;
  chunk.task = task;
  chunk.state = State::kBetween;
  chunk.reader = BitReader(file, begin, begin + task->block.code_nbits / 8);
  chunk.end = task->out + task->block.raw_nbytes;
  chunk.summed = task->out;
  chunk.crc = 0;
  lanes_[in_use_].out = task->out;
  ++in_use_;
}

void ChunkInflater::OpenBlocks(std::vector<BlockTask*>* refused) {
  for (std::size_t i = 0; i < in_use_;) {
    Chunk& chunk = chunks_[i];
    while (chunk.state == State::kBetween) chunk.state = chunk.OpenNext(&header_, &lanes_[i]);
    if (chunk.state == State::kInBlock) {
      ++i;
      continue;
    }
    if (chunk.state == State::kDone) {
      chunk.Sum(lanes_[i]);
      const CodeBlock& block = chunk.task->block;
      chunk.task->decoded = {static_cast<std::size_t>(block.raw_nbytes),
                             block.code_bit + block.code_nbits, chunk.crc};
    } else {
      refused->push_back(chunk.task);
    }
    if (--in_use_ != i) {
      chunk = chunks_[in_use_];
      lanes_[i] = lanes_[in_use_];
    }
  }
}

void ChunkInflater::DecodeLiterals(Span file) {
  unsigned nbits = 0;
  for (std::size_t i = 0; i < in_use_; ++i) nbits = std::max(nbits, chunks_[i].literal_nbits);
  const std::size_t literals = LiteralsInRound(nbits);
  std::size_t rounds = kMostRounds;
  for (std::size_t i = 0; i < in_use_; ++i) {
    const std::size_t left = chunks_[i].RoundsLeft(lanes_[i]);
    if (left < kFewRounds) {
      chunks_[i].state = chunks_[i].Walk(kFewRounds * literals, &lanes_[i]);
      rounds = 0;
    }
    rounds = std::min(rounds, left);
  }
  if (rounds < kFewRounds) return;
  for (std::size_t i = 0; i < in_use_; ++i) {
    lanes_[i].table.Extend(nbits);
    lanes_[i].bit = chunks_[i].reader.at();
  }
  bool all_in_blocks = true;
  while (all_in_blocks && rounds >= kFewRounds) {
    rounds -= DecodeLiteralRounds(file.data, lanes_.data(), in_use_, nbits, rounds);
    for (std::size_t i = 0; i < in_use_; ++i) {
      if (!lanes_[i].stopped) continue;
      chunks_[i].reader.Move(lanes_[i].bit);
      chunks_[i].state = chunks_[i].Walk(literals, &lanes_[i]);
      lanes_[i].bit = chunks_[i].reader.at();
      all_in_blocks = all_in_blocks && chunks_[i].state == State::kInBlock;
      rounds = std::min(rounds, chunks_[i].RoundsLeft(lanes_[i]));
    }
  }
  for (std::size_t i = 0; i < in_use_; ++i) {
    chunks_[i].reader.Move(lanes_[i].bit);
    if (lanes_[i].out - chunks_[i].summed >= kSumNbytes) chunks_[i].Sum(lanes_[i]);
  }
}

ChunkInflater::State ChunkInflater::Chunk::OpenNext(BlockHeader* header, LiteralLane* lane) {
  if (reader.at() >= reader.end()) {
    return reader.overrun() || lane->out != end ? State::kRefused : State::kDone;
  }
  if (!ReadBlockHeader(&reader, header) || reader.overrun() || header->is_last) {
    return State::kRefused;
  }
  return header->kind == BlockHeader::Kind::kStored ? CopyStored(header->stored_nbytes, lane)
                                                    : OpenSymbols(*header, lane);
}

ChunkInflater::State ChunkInflater::Chunk::CopyStored(std::size_t nbytes, LiteralLane* lane) {
  const Span bytes = reader.TakeBytes(nbytes);
  if (bytes.nbytes < nbytes || nbytes > static_cast<std::size_t>(end - lane->out)) {
    return State::kRefused;
  }
  if (nbytes != 0) std::memcpy(lane->out, bytes.data, nbytes);
  lane->out += nbytes;
  return State::kBetween;
}

ChunkInflater::State ChunkInflater::Chunk::OpenSymbols(const BlockHeader& header,
                                                       LiteralLane* lane) {
  const bool frequent_matches = HasFrequentMatches(header);
  if (frequent_matches && !NearlyDone(*lane)) return State::kRefused;
  if (literals.Set(header.lengths.data(), header.literals) != SymbolDecoder::Shape::kComplete ||
      distances.Set(header.distance_lengths(), header.distances) ==
          SymbolDecoder::Shape::kInvalid) {
    return State::kRefused;
  }
  const std::uint8_t longest =
      *std::max_element(header.lengths.begin(), header.lengths.begin() + kLiterals);
  literal_nbits = std::clamp<unsigned>(longest, 1, kLongestInRounds);
  lane->table.Fill(literals, literal_nbits);
  // In rounds, each match holds up all lanes.
  return frequent_matches ? Walk(SIZE_MAX, lane) : State::kInBlock;
}

bool ChunkInflater::Chunk::NearlyDone(const LiteralLane& lane) const {
  return end - lane.out < (lane.out - task->out) / 2;
}

ChunkInflater::State ChunkInflater::Chunk::Walk(std::size_t most_literals, LiteralLane* lane) {
  const std::uint64_t mask = (std::uint64_t{1} << lane->table.nbits()) - 1;
  for (;;) {
    const std::uint64_t bits = reader.Peek();
    SymbolDecoder::Symbol symbol = lane->table.Literal(bits & mask);
    if (symbol.nbits == 0) symbol = literals.Decode(bits);
    if (symbol.value < kLiterals) {
      if (most_literals-- == 0) return reader.overrun() ? State::kRefused : State::kInBlock;
      if (lane->out == end) return State::kRefused;
      *lane->out++ = static_cast<std::uint8_t>(symbol.value);
      reader.Skip(symbol.nbits);
    } else if (symbol.value == kEndOfBlock) {
      reader.Skip(symbol.nbits);
      return reader.overrun() ? State::kRefused : State::kBetween;
    } else {
      reader.Skip(symbol.nbits);
      if (!CopyMatch(symbol.value - kEndOfBlock - 1, lane)) return State::kRefused;
    }
  }
}

bool ChunkInflater::Chunk::CopyMatch(std::size_t length_symbol, LiteralLane* lane) {
  if (length_symbol >= kLengthSymbols) return false;
  std::size_t nbytes = kLengthBase[length_symbol] + reader.Take(LengthExtraBits(length_symbol));
  const SymbolDecoder::Symbol symbol = distances.Decode(reader.Peek());
  reader.Skip(symbol.nbits);
  if (symbol.nbits == 0 || symbol.value >= kDistanceSymbols) return false;
  const std::size_t distance =
      kDistanceBase[symbol.value] + reader.Take(DistanceExtraBits(symbol.value));
  if (reader.overrun() || distance > static_cast<std::size_t>(lane->out - task->out) ||
      nbytes > static_cast<std::size_t>(end - lane->out)) {
    return false;
  }
  CopyFromBefore(distance, nbytes, static_cast<std::size_t>(end - lane->out), lane->out);
  lane->out += nbytes;
  return true;
}

std::size_t ChunkInflater::Chunk::RoundsLeft(const LiteralLane& lane) const {
  constexpr std::uint64_t kWordNbits = 64;
  const std::uint64_t left = reader.overrun() ? 0 : reader.end() - reader.at();
  if (left < kWordNbits) return 0;
  const std::uint64_t of_code = (left - kWordNbits) / kRoundNbits + 1;
  return std::min<std::uint64_t>(of_code, static_cast<std::size_t>(end - lane.out) / kMostInRound);
}

void ChunkInflater::Chunk::Sum(const LiteralLane& lane) {
  crc = Crc32({summed, static_cast<std::size_t>(lane.out - summed)}, crc);
  summed = lane.out;
}

}  // namespace pyckpt::gzip
