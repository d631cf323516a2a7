// Shared by the planted bugs (planted.cu) and the program that runs them (planted.cpp).
#pragma once

#include "runtime/stream.h"

namespace planted {

constexpr int kThreads = 64;

// Memory of the device, as an op's tensor.
struct Tensor {
  explicit Tensor(size_t count_) : count(count_), data(static_cast<float*>(emulation::device_allocate(4 * count))) {}
  ~Tensor() { free(); }
  void free() {
    emulation::device_free(data);
    data = nullptr;
  }
  size_t count;
  float* data;
};

// The op of this name, whose result is `out`, of kThreads numbers.
void run(const char* name, float* out);

// Prints a value that the host has read from memory of the device, and the number of its waits.
void say_host_read(float value);

}  // namespace planted
