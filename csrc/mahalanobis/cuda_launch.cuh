// Shared by the Mahalanobis launchers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda.h"
#include "cuda_substitution.h"

namespace fastood::mahalanobis {

// Multiprocessors that a launch should keep busy: those of an H100 or H200.
constexpr int64_t kMultiprocessors = 132;

// Calls launch with the rows of a warp in a substitution, as an integral constant: as many as leave a block for each
// multiprocessor, eight at most, or four of float64 (with a float64 L eight would spill).
template <typename T, int kRows = sizeof(T) == 4 ? 8 : 4, typename Launch>
cudaError_t with_rows_per_warp(int64_t num_rows, const Launch& launch) {
  if constexpr (kRows > 1) {
    if (num_substitution_blocks(num_rows, kRows) < kMultiprocessors) {
      return with_rows_per_warp<T, kRows / 2>(num_rows, launch);
    }
  }
  return launch(std::integral_constant<int, kRows>());
}

// Calls launch with the side of the tiles: 64, or 32 where that would make too few.
template <typename Launch>
cudaError_t with_tile(int64_t num_blocks_of_64, const Launch& launch) {
  return num_blocks_of_64 < kMultiprocessors ? launch(std::integral_constant<int, 32>())
                                             : launch(std::integral_constant<int, 64>());
}

// Pieces of a workspace, each aligned for any type. From null it measures: offset() is the size.
class Carver {
 public:
  explicit Carver(void* start) : start_(static_cast<char*>(start)) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = start_ == nullptr ? nullptr : reinterpret_cast<T*>(start_ + offset_);
    offset_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return piece;
  }

  int64_t offset() const { return offset_; }

 private:
  char* start_;
  int64_t offset_ = 0;
};

// Calls body.operator()<T>() with the element type of the tensors.
template <typename Body>
auto with_element_type(const MahalanobisShape& shape, const Body& body) {
  return shape.float64 ? body.template operator()<double>() : body.template operator()<float>();
}

// Bytes of workspace that take(params, workspace), called without memory, takes for this shape.
template <typename Params, typename Take>
int64_t workspace_bytes(const MahalanobisShape& shape, const Take& take) {
  Carver workspace(nullptr);
  Params params{};
  params.shape = shape;
  with_element_type(shape, [&]<typename T>() { take.template operator()<T>(params, workspace); });
  return workspace.offset();
}

// A program's kernel. With a number of blocks that a multiprocessor should hold at least: otherwise ptxas aims at more and spills.
template <typename Program, typename Args>
__global__ void __launch_bounds__(Program::kThreads, Program::kMinBlocks)
    program_kernel(const __grid_constant__ Args args) {
  __shared__ typename Program::Shared shared;
  Program::run(shared, args);
}

template <typename Program, typename Args>
cudaError_t launch_program(const Args& args, int64_t num_blocks, cudaStream_t stream) {
  if (num_blocks == 0) {
    return cudaSuccess;
  }
  if (num_blocks > INT32_MAX) {
    return cudaErrorInvalidConfiguration;
  }
  program_kernel<Program, Args><<<static_cast<unsigned>(num_blocks), Program::kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace fastood::mahalanobis
