#include "base/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

namespace pyckpt {
namespace {

#if defined(__x86_64__)
bool WantsPortable() {
  const char* value = std::getenv("PYCKPT_PORTABLE");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

// Not every compiler's __builtin_cpu_supports() knows it.
bool HasLzcnt() {
  constexpr unsigned kExtendedFeatures = 0x80000001;
  constexpr unsigned kLzcnt = 1 << 5;  // of ecx
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(kExtendedFeatures, &eax, &ebx, &ecx, &edx) != 0 && (ecx & kLzcnt) != 0;
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
  static const bool kUse = !WantsPortable() && __builtin_cpu_supports("bmi") != 0 &&
                           __builtin_cpu_supports("bmi2") != 0 &&
                           __builtin_cpu_supports("popcnt") != 0 && HasLzcnt();
  return kUse;
#else
  return false;
#endif
}

bool UseVpclmul() {
#if defined(__x86_64__)
  static const bool kUse = UseAvx2() && __builtin_cpu_supports("pclmul") != 0 &&
                           __builtin_cpu_supports("vpclmulqdq") != 0;
  return kUse;
#else
  return false;
#endif
}

}  // namespace pyckpt
