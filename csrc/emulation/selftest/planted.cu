// Planted bugs, one kernel or launch each, which the emulation must report; and counterparts without the bug (good_*),
// for which it must report nothing. test_planted.py lists the variants that report each bug.
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>
#include <vector>

#include "planted.h"

namespace planted {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// --- kernels ----------------------------------------------------------------------------------------------------------
__global__ void good(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void missing_barrier(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void shared_overrun(float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void global_overrun(float* out) {
  out[threadIdx.x + 1] = 1;
}

__global__ void misaligned(float* out) {
  struct alignas(16) Four {
    float values[4];
  };
  if (threadIdx.x == 0) {
    *reinterpret_cast<Four*>(out + 1) = Four{{1, 2, 3, 4}};
  }
}

__global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}

__global__ void early_exit(float* out) {
  if (threadIdx.x == 5) {
    return;
  }
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void stuck(float* out) {
  if (threadIdx.x == 0) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void lane_missing(float* out) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 32 < 16) {
    value = __shfl_xor_sync(kAll, value, 1);
  }
  out[threadIdx.x] = value;
}

__global__ void lane_not_there(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);  // launched with 40 threads
}

__global__ void source_outside_mask(float* out) {
  if (threadIdx.x % 32 < 16) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
  }
}

__global__ void self_outside_mask(float* out) {
  out[threadIdx.x] = static_cast<float>(__ballot_sync(0x0000ffffu, 1));
}

__global__ void mismatched_kind(float* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = static_cast<float>(__any_sync(kAll, 1));
  } else {
    out[threadIdx.x] = static_cast<float>(__all_sync(kAll, 1));
  }
}

__global__ void mismatched_place(float* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  } else {
    out[threadIdx.x] = __shfl_sync(kAll, 2.0f, 0);
  }
}

__global__ void never_written(float* out) {
  __shared__ float shared[kThreads];
  if (threadIdx.x > 0) {
    shared[threadIdx.x] = 1;
  }
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void workspace_never_written(const float* workspace, float* out) {
  out[threadIdx.x] = workspace[threadIdx.x];
}

__global__ void no_syncwarp(float* out) {
  __shared__ float shared[kThreads];
  if (threadIdx.x % 32 == 0) {
    shared[threadIdx.x] = 7;
  }
  out[threadIdx.x] = shared[threadIdx.x / 32 * 32];
}

__global__ void good_syncwarp(float* out) {
  __shared__ float shared[kThreads];
  if (threadIdx.x % 32 == 0) {
    shared[threadIdx.x] = 7;
  }
  __syncwarp();
  out[threadIdx.x] = __shfl_sync(kAll, shared[threadIdx.x / 32 * 32], static_cast<int>(threadIdx.x + 1) % 32);
}

__global__ void blocks_race(float* out) {
  out[threadIdx.x] = static_cast<float>(blockIdx.x % 1);
}

__global__ void good_atomics(float* out) {
  atomicAdd(out + threadIdx.x % 2, 1.0f);
}

// The block that counts last reads what the others wrote.
template <bool kFenced>
__global__ void last_block(float* sums, unsigned* count, float* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = static_cast<float>(blockIdx.x);
    if (kFenced) {
      __threadfence();
    }
    last = atomicAdd(count, 1u) == gridDim.x - 1;
    if (kFenced) {
      __threadfence();
    }
  }
  __syncthreads();
  if (last) {
    out[threadIdx.x] = threadIdx.x < gridDim.x ? sums[threadIdx.x] : 0.0f;
  }
}

__global__ void too_much_shared(float* out) {
  __shared__ float first[8000];
  __shared__ float second[8000];
  first[threadIdx.x] = second[threadIdx.x] = 1;
  out[threadIdx.x] = first[threadIdx.x];
}

// kRight: whether the second turn of the loop begins where the first ended.
template <bool kRight>
__global__ void stride(float* out, int count) {
  float add = 1;
  for (int i = static_cast<int>(blockIdx.x * 16 + threadIdx.x); i < count; i += static_cast<int>(gridDim.x) * 16) {
    out[i] = add;
    add = kRight ? 1 : 0;
  }
}

// --- ops --------------------------------------------------------------------------------------------------------------
cudaStream_t stream() {
  return emulation::current_stream();
}

void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

void host_read(float* out, bool waits) {
  good<<<1, kThreads, 0, stream()>>>(out);
  if (waits) {
    check(cudaStreamSynchronize(stream()));
  }
  say_host_read(out[0]);
}

void copy_from_host(float* out, bool outlives_copy) {
  auto* host = new std::vector<float>(kThreads, 2.0f);
  check(cudaMemcpyAsync(out, host->data(), 4 * kThreads, cudaMemcpyHostToDevice, stream()));
  if (outlives_copy) {
    check(cudaStreamSynchronize(stream()));
  }
  delete host;
}

void temporary(float* out, bool outlives_launch) {
  Tensor workspace(kThreads);
  check(cudaMemsetAsync(workspace.data, 0, 4 * kThreads, stream()));
  float* const data = workspace.data;
  if (!outlives_launch) {
    workspace.free();
  }
  workspace_never_written<<<1, kThreads, 0, stream()>>>(data, out);
}

template <bool kFenced>
void last_block_op(float* out) {
  Tensor sums(16);
  Tensor count(1);
  auto* const counter = reinterpret_cast<unsigned*>(count.data);
  check(cudaMemsetAsync(counter, 0, sizeof(unsigned), stream()));
  last_block<kFenced><<<16, kThreads, 0, stream()>>>(sums.data, counter, out);
}

template <bool kRight>
void stride_op(float* out) {
  const long long blocks = FASTOOD_TEST_MAX_BLOCKS;
  const int grid = blocks < 4 ? static_cast<int>(blocks) : 4;
  stride<kRight><<<grid, 16, 0, stream()>>>(out, kThreads);
}

}  // namespace

void run(const char* name, float* out) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("good")) good<<<1, kThreads, 0, stream()>>>(out);
  if (is("missing_barrier")) missing_barrier<<<1, kThreads, 0, stream()>>>(out);
  if (is("shared_overrun")) shared_overrun<<<1, kThreads, 0, stream()>>>(out);
  if (is("global_overrun")) global_overrun<<<1, kThreads, 0, stream()>>>(out);
  if (is("misaligned")) misaligned<<<1, kThreads, 0, stream()>>>(out);
  if (is("divergent_barrier")) divergent_barrier<<<1, kThreads, 0, stream()>>>(out);
  if (is("early_exit")) early_exit<<<1, kThreads, 0, stream()>>>(out);
  if (is("stuck")) stuck<<<1, kThreads, 0, stream()>>>(out);
  if (is("lane_missing")) lane_missing<<<1, kThreads, 0, stream()>>>(out);
  if (is("source_outside_mask")) source_outside_mask<<<1, kThreads, 0, stream()>>>(out);
  if (is("self_outside_mask")) self_outside_mask<<<1, kThreads, 0, stream()>>>(out);
  if (is("mismatched_kind")) mismatched_kind<<<1, kThreads, 0, stream()>>>(out);
  if (is("mismatched_place")) mismatched_place<<<1, kThreads, 0, stream()>>>(out);
  if (is("never_written")) never_written<<<1, kThreads, 0, stream()>>>(out);
  if (is("no_syncwarp")) no_syncwarp<<<1, kThreads, 0, stream()>>>(out);
  if (is("good_syncwarp")) good_syncwarp<<<1, kThreads, 0, stream()>>>(out);
  if (is("too_much_shared")) too_much_shared<<<1, kThreads, 0, stream()>>>(out);
  if (is("lane_not_there")) lane_not_there<<<1, 40, 0, stream()>>>(out);
  if (is("workspace_never_written")) {
    const Tensor workspace(kThreads);
    workspace_never_written<<<1, kThreads, 0, stream()>>>(workspace.data, out);
  }
  if (is("blocks_race")) blocks_race<<<8, kThreads, 0, stream()>>>(out);
  if (is("good_atomics")) {
    check(cudaMemsetAsync(out, 0, 4 * kThreads, stream()));
    good_atomics<<<8, kThreads, 0, stream()>>>(out);
  }
  if (is("last_block")) last_block_op<false>(out);
  if (is("good_last_block")) last_block_op<true>(out);
  if (is("empty_grid")) good<<<0, kThreads, 0, stream()>>>(out);
  if (is("too_many_threads")) good<<<1, 2048, 0, stream()>>>(out);
  if (is("too_many_blocks")) good<<<1LL << 31, kThreads, 0, stream()>>>(out);
  if (is("default_stream")) good<<<1, kThreads>>>(out);
  if (is("memset_on_default_stream")) check(cudaMemsetAsync(out, 0, 4, nullptr));
  if (is("host_read")) host_read(out, false);
  if (is("good_host_read")) host_read(out, true);
  if (is("host_buffer_freed")) copy_from_host(out, false);
  if (is("good_host_buffer")) copy_from_host(out, true);
  if (is("temporary_freed")) temporary(out, false);
  if (is("good_temporary")) temporary(out, true);
  if (is("wrong_second_turn")) stride_op<false>(out);
  if (is("good_second_turn")) stride_op<true>(out);
  if (is("capture_waits")) host_read(out, true);
  if (is("good_capture")) good<<<1, kThreads, 0, stream()>>>(out);
  if (is("error_not_asked_for")) {
    good<<<0, kThreads, 0, stream()>>>(out);
    return;
  }
  check(cudaGetLastError());
}

}  // namespace planted
