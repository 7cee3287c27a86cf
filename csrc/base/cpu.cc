#include "base/cpu.h"

#include <cstdlib>
#include <cstring>

namespace pyckpt {
namespace {

#if defined(__x86_64__)
bool WantsPortable() {
  const char* value = std::getenv("PYCKPT_PORTABLE");
  return value != nullptr && std::strcmp(value, "1") == 0;
}
#endif

}  // namespace

bool UseAvx2() {
#if defined(__x86_64__)
  static const bool kUse = !WantsPortable() && __builtin_cpu_supports("avx2") != 0;
  return kUse;
#else
  return false;
#endif
}

bool UseBmi2() {
#if defined(__x86_64__)
  static const bool kUse =
      !WantsPortable() && __builtin_cpu_supports("bmi") != 0 && __builtin_cpu_supports("bmi2") != 0;
  return kUse;
#else
  return false;
#endif
}

}  // namespace pyckpt
