// Which of the CPU's instruction sets kernels may use: the one place that asks.
#ifndef PYCKPT_BASE_CPU_H_
#define PYCKPT_BASE_CPU_H_

namespace pyckpt {

// False on other CPUs, and everywhere when the environment variable
// PYCKPT_PORTABLE is 1, so that one machine can test every path. Both are looked
// at once per process. Thread-safe.
bool UseAvx2();
bool UseBmi2();  // and BMI1

}  // namespace pyckpt

#endif  // PYCKPT_BASE_CPU_H_
