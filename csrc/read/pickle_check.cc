#include "read/pickle_check.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace pyckpt {
namespace {

// What follows an opcode.
enum class Argument : std::uint8_t {
  kNoOpcode,
  kNone,
  kBytes1,  // kBytesN: N bytes
  kBytes2,
  kBytes4,
  kBytes8,
  kCounted1,  // kCountedN: a count of N bytes, then that many bytes
  kCounted4,
  kCounted8,
  kLine,
  kTwoLines,
  kMemo1,  // kMemoN: the memo index to store under, of N bytes
  kMemo4,
  kMemoLine,  // the same in decimal digits, on a line
};

constexpr char kStop = '.';

// The opcodes of protocols 0 to 5, as Python's pickletools documents them.
constexpr std::array<Argument, 256> Arguments() {
  std::array<Argument, 256> arguments{};
  const auto set = [&arguments](std::string_view opcodes, Argument argument) {
    for (const char opcode : opcodes) arguments[static_cast<std::uint8_t>(opcode)] = argument;
  };
  set("(.012NQR]abdelostu})\x81\x85\x86\x87\x88\x89\x8F\x90\x91\x92\x93\x94\x97\x98",
      Argument::kNone);
  set("Kh\x80\x82", Argument::kBytes1);  // \x82 to \x84: the process's registry of extensions
  set("M\x83", Argument::kBytes2);
  set("Jj\x84", Argument::kBytes4);
  set("G\x95", Argument::kBytes8);  // a frame's size: its opcodes follow
  set("CU\x8A\x8C", Argument::kCounted1);
  set("BTX\x8B", Argument::kCounted4);
  set("\x8D\x8E\x96", Argument::kCounted8);
  set("FILPSVg", Argument::kLine);
  set("ci", Argument::kTwoLines);
  set("q", Argument::kMemo1);
  set("r", Argument::kMemo4);
  set("p", Argument::kMemoLine);
  return arguments;
}

constexpr std::array<Argument, 256> kArguments = Arguments();

class Check {
 public:
  explicit Check(Span pickle) : pickle_(pickle) {}

  void Run() {
    for (;;) {
      const std::uint8_t opcode = *Take(1);
      CheckArgument(kArguments[opcode]);
      if (opcode == kStop) return;
    }
  }

 private:
  void CheckArgument(Argument argument) {
    switch (argument) {
      case Argument::kNoOpcode:
        throw Error::Corrupt("a pickle has an unknown opcode", at_ - 1);
      case Argument::kNone:
        return;
      case Argument::kBytes1:
        Take(1);
        return;
      case Argument::kBytes2:
        Take(2);
        return;
      case Argument::kBytes4:
        Take(4);
        return;
      case Argument::kBytes8:
        Take(8);
        return;
      case Argument::kCounted1:
        Take(Number(1));
        return;
      case Argument::kCounted4:
        Take(Number(4));
        return;
      case Argument::kCounted8:
        Take(Number(8));
        return;
      case Argument::kTwoLines:
        Line();
        [[fallthrough]];
      case Argument::kLine:
        Line();
        return;
      case Argument::kMemo1:
        CheckIndex(Number(1));
        return;
      case Argument::kMemo4:
        CheckIndex(Number(4));
        return;
      case Argument::kMemoLine:
        CheckIndex(Decimal(Line()));
        return;
    }
  }

  const std::uint8_t* Take(std::uint64_t nbytes) {
    if (nbytes > pickle_.nbytes - at_) {
      throw Error::Corrupt("a pickle ends before it should", pickle_.nbytes);
    }
    const std::uint8_t* taken = pickle_.data + at_;
    at_ += static_cast<std::size_t>(nbytes);
    return taken;
  }

  std::uint64_t Number(int nbytes) {
    const std::uint8_t* bytes = Take(static_cast<std::uint64_t>(nbytes));
    std::uint64_t number = 0;
    for (int i = 0; i < nbytes; ++i) number |= std::uint64_t{bytes[i]} << (8 * i);
    return number;
  }

  std::string_view Line() {
    const std::uint8_t* begin = pickle_.data + at_;
    const std::uint8_t* end = std::find(begin, pickle_.data + pickle_.nbytes, '\n');
    const auto nbytes = static_cast<std::size_t>(end - begin);
    Take(nbytes + 1);
    return {reinterpret_cast<const char*>(begin), nbytes};
  }

  // The number on a line, as picklers write it. Python also accepts signs, blanks and underscores.
  // Here they are refused.
  std::uint64_t Decimal(std::string_view line) const {
    std::uint64_t number = 0;
    for (const char digit : line) {
      if (digit < '0' || digit > '9') throw Error::Corrupt("a memo index is not a number", at_);
      number = std::min<std::uint64_t>(number * 10 + static_cast<unsigned>(digit - '0'),
                                       pickle_.nbytes + 1);
    }
    return number;
  }

  void CheckIndex(std::uint64_t index) const {
    if (index > pickle_.nbytes) throw Error::Corrupt("a memo index is too large", at_);
  }

  Span pickle_;
  std::size_t at_ = 0;
};

}  // namespace

void CheckPickle(Span pickle) { Check(pickle).Run(); }

}  // namespace pyckpt
