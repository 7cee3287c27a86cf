// Two files or folders that exchange their names in one step.
#ifndef PYCKPT_WRITE_EXCHANGE_NAMES_H_
#define PYCKPT_WRITE_EXCHANGE_NAMES_H_

#include <string>

namespace pyckpt {

// What was a is then b, and what was b is a. At no time does one of the names lack. Returns false,
// and changes nothing, if the system or the file system cannot do that (NFS cannot). Other failures
// throw Error::System with b's path.
bool ExchangeNames(const std::string& a, const std::string& b);

}  // namespace pyckpt

#endif  // PYCKPT_WRITE_EXCHANGE_NAMES_H_
