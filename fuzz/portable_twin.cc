#include "portable_twin.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>

namespace pyckpt::fuzz {
namespace {

// SendAll() and ReceiveAll() go on after a signal (libFuzzer's timer) interrupts a call.
bool SendAll(int socket, const void* data, std::size_t nbytes) {
  const char* p = static_cast<const char*>(data);
  while (nbytes > 0) {
    const ssize_t n = send(socket, p, nbytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n;
    nbytes -= static_cast<std::size_t>(n);
  }
  return true;
}

bool ReceiveAll(int socket, void* data, std::size_t nbytes) {
  char* p = static_cast<char*>(data);
  while (nbytes > 0) {
    const ssize_t n = recv(socket, p, nbytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n;
    nbytes -= static_cast<std::size_t>(n);
  }
  return true;
}

bool SendText(int socket, const std::string& text) {
  const std::uint64_t nbytes = text.size();
  return SendAll(socket, &nbytes, sizeof nbytes) && SendAll(socket, text.data(), nbytes);
}

bool ReceiveText(int socket, std::string* text) {
  std::uint64_t nbytes = 0;
  if (!ReceiveAll(socket, &nbytes, sizeof nbytes)) return false;
  text->resize(nbytes);
  return ReceiveAll(socket, text->data(), nbytes);
}

}  // namespace

PortableTwin::PortableTwin(const Answer& answer) {
  std::array<int, 2> sockets{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) != 0) std::abort();
  const pid_t twin = fork();
  if (twin < 0) std::abort();
  socket_ = sockets[twin == 0 ? 1 : 0];
  close(sockets[twin == 0 ? 0 : 1]);
  if (twin != 0) return;
  if (setenv("PYCKPT_PORTABLE", "1", 1) != 0) std::abort();
  std::string question;
  while (ReceiveText(socket_, &question) && SendText(socket_, answer(question))) {
  }
  _exit(0);
}

std::string PortableTwin::Ask(const std::string& question) const {
  std::string answer;
  if (!SendText(socket_, question) || !ReceiveText(socket_, &answer)) std::abort();
  return answer;
}

}  // namespace pyckpt::fuzz
