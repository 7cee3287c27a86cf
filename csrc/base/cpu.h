// The CPU instruction sets that kernels may use. No other code in this project asks the CPU.
#ifndef PYCKPT_BASE_CPU_H_
#define PYCKPT_BASE_CPU_H_

namespace pyckpt {

// False if the CPU does not have the instruction set, or if the environment variable
// PYCKPT_PORTABLE is 1. The variable lets one machine test every path. Both are read once per
// process. Thread-safe.
bool UseAvx2();
bool UseBmi2();     // and BMI1, LZCNT and POPCNT
bool UseVpclmul();  // VPCLMULQDQ in vectors of 256 bits, and AVX2

}  // namespace pyckpt

#endif  // PYCKPT_BASE_CPU_H_
