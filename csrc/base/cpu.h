// Which of the CPU's instruction sets kernels may use. Nothing else asks the CPU.
#ifndef PYCKPT_BASE_CPU_H_
#define PYCKPT_BASE_CPU_H_

namespace pyckpt {

// False if the CPU lacks it, or if the environment variable PYCKPT_PORTABLE is 1, so that one
// machine can test every path. CPU and variable are read once per process. Thread-safe.
bool UseAvx2();
bool UseBmi2();  // and BMI1

}  // namespace pyckpt

#endif  // PYCKPT_BASE_CPU_H_
