#include "byte_program.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace pyckpt::fuzz {
namespace {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15U + 1) {}

  std::uint64_t Next() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1DU;
  }
  std::uint64_t Below(std::uint64_t limit) { return (Next() >> 32) * limit >> 32; }
  float Normal() {
    float sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(Next() >> 40) * 0x1p-24F;
    return sum;
  }

 private:
  std::uint64_t state_;
};

struct Instruction {
  std::size_t nbytes;
  std::uint8_t a;
  std::uint8_t b;
};

using Generator = void (*)(const Instruction& todo, std::vector<std::uint8_t>* out);

// Calls next() again and again, and adds the first width bytes of each value.
template <typename Next>
void AddValues(std::size_t nbytes, std::size_t width, std::vector<std::uint8_t>* out, Next next) {
  const std::size_t end = out->size() + nbytes;
  while (out->size() < end) {
    const auto value = next();
    std::array<std::uint8_t, sizeof value> bytes{};
    std::memcpy(bytes.data(), &value, sizeof value);
    const std::size_t n = std::min(width, end - out->size());
    out->insert(out->end(), bytes.data(), bytes.data() + n);
  }
}

void AddRun(const Instruction& todo, std::vector<std::uint8_t>* out) {
  out->insert(out->end(), todo.nbytes, todo.a);
}

void AddNoise(const Instruction& todo, std::vector<std::uint8_t>* out) {
  Random random(todo.b);
  AddValues(todo.nbytes, 8, out, [&] { return random.Next(); });
}

// Normal noise: float32, its upper halves (bfloat16), its widening (float64), and float32
// of which some are zero.
void AddFloats(const Instruction& todo, std::vector<std::uint8_t>* out) {
  Random random(todo.b);
  const float scale = std::ldexp(1.0F, -(todo.a >> 4));
  switch (todo.a & 3) {
    case 0:
      AddValues(todo.nbytes, 4, out, [&] { return random.Normal() * scale; });
      break;
    case 1:
      AddValues(todo.nbytes, 2, out, [&] {
        const float value = random.Normal() * scale;
        std::uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof bits);
        return bits >> 16;
      });
      break;
    case 2:
      AddValues(todo.nbytes, 8, out, [&] { return static_cast<double>(random.Normal() * scale); });
      break;
    default:
      AddValues(todo.nbytes, 4, out, [&] { return std::max(0.0F, random.Normal() * scale); });
  }
}

// Symbols whose counts are Fibonacci numbers, or powers of two: these give the deepest codes.
void AddSteepCounts(const Instruction& todo, std::vector<std::uint8_t>* out) {
  const std::size_t begin = out->size();
  const bool powers = (todo.b & 1) != 0;
  std::size_t before = 1;
  std::size_t count = 1;
  for (std::uint8_t symbol = todo.a; out->size() < begin + todo.nbytes; ++symbol) {
    out->insert(out->end(), std::min(count, begin + todo.nbytes - out->size()), symbol);
    const std::size_t next = powers ? 2 * count : before + count;
    before = count;
    count = next;
  }
  Random random(todo.b);
  if ((todo.b & 2) != 0) return;
  for (std::size_t n = todo.nbytes; n > 1; --n) {
    std::swap((*out)[begin + n - 1], (*out)[begin + random.Below(n)]);
  }
}

// Symbols drawn from an alphabet of a + 1, evenly or not.
void AddAlphabet(const Instruction& todo, std::vector<std::uint8_t>* out) {
  Random random(todo.b);
  AddValues(todo.nbytes, 1, out, [&] {
    const std::uint64_t symbol = random.Below(todo.a + 1U);
    return static_cast<std::uint8_t>((todo.b & 1) == 0 ? symbol : random.Below(symbol + 1));
  });
}

// Repeats what is 1 to 65,536 bytes before.
void AddAgain(const Instruction& todo, std::vector<std::uint8_t>* out) {
  const std::size_t distance = 1 + (std::size_t{todo.a} << 8 | todo.b);
  for (std::size_t i = 0; i < todo.nbytes; ++i) {
    out->push_back(out->size() < distance ? 0 : (*out)[out->size() - distance]);
  }
}

// Repeats what starts at a place near a limit, often far away, as in a large tiled tensor.
void AddAllAgain(const Instruction& todo, std::vector<std::uint8_t>* out) {
  const std::size_t from = std::min(out->size(), SizeNearLimit(todo.a));
  for (std::size_t i = 0; i < todo.nbytes; ++i) {
    out->push_back(from + i < out->size() ? (*out)[from + i] : 0);
  }
}

void AddCount(const Instruction& todo, std::vector<std::uint8_t>* out) {
  std::uint64_t n = std::uint64_t{todo.b} << 8;
  AddValues(todo.nbytes, 1 + todo.a % 8, out, [&] { return n++; });
}

// Words of a small vocabulary, with blanks.
void AddText(const Instruction& todo, std::vector<std::uint8_t>* out) {
  Random random(todo.b);
  const std::size_t begin = out->size();
  while (out->size() < begin + todo.nbytes) {
    Random word(random.Below(todo.a + 1U));
    for (std::uint64_t n = 1 + word.Below(12); n > 0; --n) {
      out->push_back(static_cast<std::uint8_t>('a' + word.Below(26)));
    }
    out->push_back(' ');
  }
  out->resize(begin + todo.nbytes);
}

// Elements of 4 bytes: some bytes are noise, the others are zero in 199 of 200 elements.
void AddSurprises(const Instruction& todo, std::vector<std::uint8_t>* out) {
  Random random(todo.b);
  const std::uint64_t noisy = todo.a * 0x0101010101010101U & 0xFFU << (todo.a % 8);
  AddValues(todo.nbytes, 4, out, [&] {
    const std::uint64_t value = random.Next();
    return random.Below(200) == 0 ? value : value & (noisy | 0xFFFF);
  });
}

// Runs of lengths at which bzip2's first stage changes its coding.
void AddRuns(const Instruction& todo, std::vector<std::uint8_t>* out) {
  Random random(todo.b);
  const std::size_t end = out->size() + todo.nbytes;
  for (std::uint8_t byte = todo.a; out->size() < end;
       byte = static_cast<std::uint8_t>(byte * 5 + 1)) {
    constexpr std::array<std::size_t, 8> kLengths = {1, 3, 4, 5, 254, 255, 256, 259};
    const std::size_t length = kLengths[random.Below(kLengths.size())];
    out->insert(out->end(), std::min(length, end - out->size()), byte);
  }
}

// The Fibonacci word of the bytes a and b, which is hard to sort.
void AddWord(const Instruction& todo, std::vector<std::uint8_t>* out) {
  std::vector<std::uint8_t> before = {todo.a};
  std::vector<std::uint8_t> word = {todo.a, todo.b};
  while (word.size() < todo.nbytes) {
    std::vector<std::uint8_t> next = word;
    next.insert(next.end(), before.begin(), before.end());
    before = std::move(word);
    word = std::move(next);
  }
  out->insert(out->end(), word.data(), word.data() + todo.nbytes);
}

constexpr std::array<Generator, 13> kGenerators = {
    AddRun,   AddNoise, AddFloats, AddSteepCounts, AddAlphabet, AddAgain, AddAllAgain,
    AddCount, AddText,  AddRuns,   AddSurprises,   AddWord,     AddFloats};
constexpr unsigned kSameElements = 16;  // flag of an operation: it adds to the last part

}  // namespace

std::size_t SizeNearLimit(std::uint8_t byte) {
  // Limits of matches, probes, lanes, windows, stored blocks, bzip2's blocks and chunks.
  constexpr std::array<std::size_t, 16> kLimits = {
      8,      16,     32,     64,     258,     512,     4096,    16'320,
      16'384, 32'768, 65'535, 99'981, 131'072, 261'120, 524'288, 899'981};
  return kLimits[byte & 15] + (byte >> 4) - 8;
}

Bytes RunProgram(Span program, std::size_t most_nbytes) {
  Bytes out;
  for (std::size_t i = 0; i + 4 <= program.nbytes && out.raw.size() < most_nbytes; i += 4) {
    const std::uint8_t* code = program.data + i;
    const std::size_t nbytes = std::min(SizeNearLimit(code[1]), most_nbytes - out.raw.size());
    kGenerators[(code[0] & 15U) % kGenerators.size()]({nbytes, code[2], code[3]}, &out.raw);
    if (out.parts.empty() || (code[0] & kSameElements) == 0) {
      out.parts.push_back({0, 1U << (code[0] >> 6)});
    }
    out.parts.back().nbytes += nbytes;
  }
  return out;
}

}  // namespace pyckpt::fuzz
