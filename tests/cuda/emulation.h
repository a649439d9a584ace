// What csrc/cuda/rans.cu needs of CUDA, for a C++ compiler without a GPU:
//
//   c++ -std=c++17 -x c++ -DL2C_CUDA_EMULATION -Icsrc -include tests/cuda/emulation.h csrc/cuda/rans.cu ...
//
// Blocks run one after the other. The threads of a block are fibers of one thread: each runs until it meets a
// collective (vote, shuffle, barrier) and goes on when all of its warp, or block, have come there. Who runs next is
// drawn by lot (L2C_EMULATION_SEED), so that results that depend on the order show. An asynchronous copy happens when
// it is asked for or when it is waited for, by lot as well: the earliest and the latest time that a GPU could choose.
//
// Misuse ends the process: a collective that not all threads of a warp take part in, or other threads in another one; a
// mask that is not the whole warp; a thread that ends while others wait for it.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

namespace l2c::emulation {

constexpr unsigned kWarpSize = 32;
constexpr size_t kStackSize = size_t{1} << 18;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "CUDA emulation: %s\n", what);
    std::abort();
}

inline uint64_t lots = 1;

inline unsigned lot(unsigned choices) {
    lots = lots * 6364136223846793005u + 1442695040888963407u;
    return static_cast<unsigned>((lots >> 33) % choices);
}

// Threads that meet. `round` counts the meetings that took place.
struct Meeting {
    unsigned size = 0, arrived = 0;
    const char* kind = nullptr;
    uint64_t round = 0;
    uint32_t brought[kWarpSize] = {}, results[kWarpSize] = {};
};

struct Copy {
    void* to;
    const void* from;
    size_t size;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackSize]};
    dim3 thread;
    bool done = false;
    Meeting* waits_for = nullptr;
    uint64_t waits_since = 0;
    std::vector<std::vector<Copy>> commits;
    std::vector<Copy> copies;
};

struct Block {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting all;
    Fiber* current = nullptr;
    const std::function<void()>* body = nullptr;
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_size = 0;
};

inline Block* block = nullptr;
inline dim3 thread_index, block_index, block_dim, grid_dim;

// Control goes from a fiber to the scheduler or back; AddressSanitizer must know whose stack is in use.
inline void to_scheduler() {
    Fiber& self = *block->current;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(self.done ? nullptr : &fake, block->scheduler_stack, block->scheduler_stack_size);
#endif
    swapcontext(&self.context, &block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &block->scheduler_stack, &block->scheduler_stack_size);
#endif
}

inline void to_fiber(Fiber& fiber) {
    block->current = &fiber;
    thread_index = fiber.thread;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackSize);
#endif
    swapcontext(&block->scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_size);
#endif
    (*block->body)();
    if (!block->current->copies.empty() || !block->current->commits.empty()) fail("a copy is under way at the end");
    block->current->done = true;
    to_scheduler();
}

// Waits until everybody has come; returns what they brought, by lane.
inline const uint32_t* meet(Meeting& meeting, const char* kind, uint32_t value) {
    if (meeting.arrived == 0) meeting.kind = kind;
    if (std::strcmp(meeting.kind, kind) != 0) fail("threads of a warp are in different collectives");
    meeting.brought[thread_index.x % kWarpSize] = value;
    if (++meeting.arrived == meeting.size) {
        std::copy(meeting.brought, meeting.brought + kWarpSize, meeting.results);
        meeting.arrived = 0;
        ++meeting.round;
    } else {
        block->current->waits_for = &meeting;
        block->current->waits_since = meeting.round;
        to_scheduler();
        block->current->waits_for = nullptr;
    }
    // Nobody can complete the next meeting, and overwrite these, before this thread has come to it.
    return meeting.results;
}

inline const uint32_t* meet_warp(unsigned mask, const char* kind, uint32_t value) {
    if (mask != 0xffffffff) fail("only collectives of a whole warp are emulated");
    return meet(block->warps[thread_index.x / kWarpSize], kind, value);
}

inline void prepare(Fiber& fiber, unsigned thread) {
    fiber.thread = dim3(thread, 0, 0);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackSize;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
}

inline void run_block(unsigned threads, const std::function<void()>& body) {
    if (threads % kWarpSize != 0) fail("only blocks of whole warps are emulated");
    Block here;
    block = &here;
    here.body = &body;
    here.fibers = std::vector<Fiber>(threads);
    here.warps.resize(threads / kWarpSize);
    for (Meeting& warp : here.warps) warp.size = kWarpSize;
    here.all.size = threads;
    for (unsigned t = 0; t < threads; ++t) prepare(here.fibers[t], t);
    std::vector<Fiber*> ready;
    while (true) {
        ready.clear();
        bool waiting = false;
        for (Fiber& fiber : here.fibers) {
            if (fiber.done) continue;
            if (fiber.waits_for == nullptr || fiber.waits_for->round != fiber.waits_since) {
                ready.push_back(&fiber);
            } else {
                waiting = true;
            }
        }
        if (ready.empty()) {
            if (waiting) fail("threads wait for others that have ended or are elsewhere");
            break;
        }
        // All that are ready, beginning with any of them, in either direction.
        std::rotate(ready.begin(), ready.begin() + lot(static_cast<unsigned>(ready.size())), ready.end());
        if (lot(2) != 0) std::reverse(ready.begin(), ready.end());
        for (Fiber* fiber : ready) to_fiber(*fiber);
    }
    block = nullptr;
}

inline void launch(dim3 grid, unsigned threads, const std::function<void()>& body) {
    grid_dim = grid;
    block_dim = dim3(threads);
    for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
            block_index = dim3(x, y, 0);
            run_block(threads, body);
        }
    }
}

}  // namespace l2c::emulation

// Other lots from here on. For ctypes.
extern "C" __attribute__((used, visibility("default"))) inline void set_emulation_seed(uint64_t seed) {
    l2c::emulation::lots = seed;
}

#define threadIdx (l2c::emulation::thread_index)
#define blockIdx (l2c::emulation::block_index)
#define blockDim (l2c::emulation::block_dim)
#define gridDim (l2c::emulation::grid_dim)
#define L2C_LAUNCH(kernel, grid, threads, stream, ...) \
    (static_cast<void>(stream), l2c::emulation::launch(grid, threads, [&] { kernel(__VA_ARGS__); }))

inline void __syncthreads() {
    l2c::emulation::meet(l2c::emulation::block->all, "__syncthreads", 0);
}
inline void __syncwarp(unsigned mask = 0xffffffff) {
    l2c::emulation::meet_warp(mask, "__syncwarp", 0);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    const uint32_t* votes = l2c::emulation::meet_warp(mask, "__ballot_sync", predicate);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < l2c::emulation::kWarpSize; ++lane) ballot |= votes[lane] << lane;
    return ballot;
}
inline bool __any_sync(unsigned mask, bool predicate) {
    const uint32_t* votes = l2c::emulation::meet_warp(mask, "__any_sync", predicate);
    return std::any_of(votes, votes + l2c::emulation::kWarpSize, [](uint32_t vote) { return vote != 0; });
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
    static_assert(sizeof(T) == 4);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t* all = l2c::emulation::meet_warp(mask, "__shfl_sync", bits);
    std::memcpy(&value, &all[static_cast<unsigned>(source) % l2c::emulation::kWarpSize], 4);
    return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other) {
    return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % l2c::emulation::kWarpSize) ^ other);
}

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

inline void perform(const l2c::emulation::Copy& copy) {
    std::memcpy(copy.to, copy.from, copy.size);
}
inline void __pipeline_memcpy_async(void* to, const void* from, size_t size) {
    const auto misaligned = [size](const void* p) { return reinterpret_cast<uintptr_t>(p) % size != 0; };
    if ((size != 4 && size != 8 && size != 16) || misaligned(to) || misaligned(from)) {
        l2c::emulation::fail("an asynchronous copy is misaligned");
    }
    const l2c::emulation::Copy copy = {to, from, size};
    if (l2c::emulation::lot(2) != 0) {
        perform(copy);
    } else {
        l2c::emulation::block->current->copies.push_back(copy);
    }
}
inline void __pipeline_commit() {
    l2c::emulation::Fiber& self = *l2c::emulation::block->current;
    self.commits.push_back(std::move(self.copies));
    self.copies.clear();
}
inline void __pipeline_wait_prior(size_t keep) {
    if (keep > 8) l2c::emulation::fail("CUDA's __pipeline_wait_prior takes 8 for more");
    auto& commits = l2c::emulation::block->current->commits;
    if (commits.size() <= keep) return;
    const auto end = commits.end() - static_cast<ptrdiff_t>(keep);
    for (auto commit = commits.begin(); commit != end; ++commit) {
        for (const l2c::emulation::Copy& copy : *commit) perform(copy);
    }
    commits.erase(commits.begin(), end);
}

// The GPU's answer differs from the nearest one by a few units in the last place: any of them must do.
inline float approximate_reciprocal(float x) {
    const float exact = 1.0f / x;
    return exact * (1.0f + 0x1p-23f * static_cast<float>(static_cast<int>(l2c::emulation::lot(9)) - 4));
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : 101;
}
inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == 101 ? "invalid device ordinal" : "unknown error";
}
