// The kernels of rans.h.
//
// Read me first
//   - One warp codes one stream, a thread one lane, or two of 64 lanes (t and t + 32). What limits a row is the latency
//     of one chain: state, slot, interval, state, which lanes want words, words. So nothing is on that chain that can
//     be elsewhere, and there is no barrier between warps on it, which would cost about as much as the second lane
//     does.
//   - Nothing on the chain waits for global memory: asynchronous copies bring windows, intervals and words into rings
//   in
//     shared memory several rows before they are read. (Loads into registers would not do: a GPU waits for all that it
//     has asked for since, not for one.)
//   - Votes cost less than shuffles: a thread that searches all of a window alone is as fast as four that share it.
//   - A thread that has no symbol in a row codes one of probability one, which changes no state and takes no word.
//   - What happens seldom (a slot outside its window, a symbol of frequency < 16 that takes two words) is noticed after
//     the row was computed as if it did not happen, while the words are on their way. That no words are left is noticed
//     at the end of a step: until then, garbage comes out of the ring.
//   - A stream's contents reach addresses through masks and bounds only: garbage in, garbage out.
//
// tests/cuda/emulation.h compiles this file as plain C++ as well; it stands in for what cuda_runtime.h declares.

#ifndef L2C_CUDA_EMULATION
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>
#define L2C_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

#include "core/rans_kernels.h"
#include "cuda/rans.h"

namespace l2c::cuda {
namespace {

constexpr uint32_t kWarp = 0xffffffff;  // every collective is one of the whole warp
constexpr int kWarpSize = 32;
constexpr int kBlock = 128;        // threads of a block of the parallel kernels
constexpr uint32_t kMaxPrior = 8;  // __pipeline_wait_prior waits for all commits but the last so many, at most these

// `x` as it is, but in a register: keeps the compiler from computing it again in every round of a loop, where what it
// would read (parameters, thread indexes) comes slowly.
template <class T>
__device__ T kept(T x) {
#ifndef L2C_CUDA_EMULATION
    if constexpr (sizeof(T) == 8) {
        asm volatile("" : "+l"(x));
    } else {
        asm volatile("" : "+r"(x));
    }
#endif
    return x;
}

// The upper half. Comparing it takes one instruction, x < 2^32 two.
__device__ uint32_t upper_half(uint64_t x) {
#ifdef L2C_CUDA_EMULATION
    return static_cast<uint32_t>(x >> 32);
#else
    uint32_t high;
    asm("{\n .reg .b32 low;\n mov.b64 {low, %0}, %1;\n}" : "=r"(high) : "l"(x));
    return high;
#endif
}

// Addresses in shared memory.
#ifdef L2C_CUDA_EMULATION
using SharedAddress = char*;
__device__ SharedAddress shared_address(void* pointer) {
    return static_cast<char*>(pointer);
}
#else
using SharedAddress = uint32_t;
__device__ SharedAddress shared_address(void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// Asks for an asynchronous copy of kBytes (4 or 16, aligned so at both ends) from `from` + kFrom to `to` + kTo, if a is
// less than b. All in one piece, so that compilers do not make branches of the condition.
template <int kBytes, int kTo = 0, int kFrom = 0>
__device__ void copy_if_less(uint32_t a, uint32_t b, SharedAddress to, const void* from) {
#ifdef L2C_CUDA_EMULATION
    if (a < b) __pipeline_memcpy_async(to + kTo, static_cast<const char*>(from) + kFrom, kBytes);
#else
    if constexpr (kBytes == 16) {
        asm volatile(
            "{\n .reg .pred p;\n setp.lt.u32 p, %0, %1;\n @p cp.async.cg.shared.global [%2 + %4], [%3 + %5], 16;\n}"
            :
            : "r"(a), "r"(b), "r"(to), "l"(from), "n"(kTo), "n"(kFrom)
            : "memory");
    } else {
        asm volatile(
            "{\n .reg .pred p;\n setp.lt.u32 p, %0, %1;\n @p cp.async.ca.shared.global [%2 + %4], [%3 + %5], 4;\n}"
            :
            : "r"(a), "r"(b), "r"(to), "l"(from), "n"(kTo), "n"(kFrom)
            : "memory");
    }
#endif
}

// ---- the mixture on the device --------------------------------------------------------------------------------------

// kTailA, kTailB and kTailC by segment: one 8-byte load from shared memory, where neighbouring threads may read
// different segments at once (in constant memory they would take turns).
struct TailSegments {
    uint32_t ab[kTailSegments];  // a | b << 16
    uint32_t c[kTailSegments];
};

constexpr TailSegments make_tail_segments() {
    TailSegments segments = {};
    for (int s = 0; s < kTailSegments; ++s) {
        segments.ab[s] = kTailA[s] | static_cast<uint32_t>(kTailB[s]) << 16;
        segments.c[s] = kTailC[s];
    }
    return segments;
}

__constant__ const TailSegments kTailOnDevice = make_tail_segments();

// T(u) from a copy of the segments in shared memory.
struct SharedTail {
    const uint2* segments;

    __device__ uint32_t operator()(uint32_t u) const {
        const uint2 segment = segments[u >> 10];
        return tail_in_segment(u, segment.x & 0xffff, segment.x >> 16, segment.y);
    }
};

// To be called by every thread of a block, at least kTailSegments of them.
__device__ SharedTail load_tail(uint2* segments) {
    if (threadIdx.x < kTailSegments) {
        segments[threadIdx.x] = make_uint2(kTailOnDevice.ab[threadIdx.x], kTailOnDevice.c[threadIdx.x]);
    }
    __syncthreads();
    return {segments};
}

__device__ MixtureView view_of(const Mixtures& m, int stream) {
    const size_t at = static_cast<size_t>(stream) * m.capacity;
    return {m.weights + at, m.means + at,  m.inv_scales + at, static_cast<size_t>(m.num_streams) * m.capacity,
            m.num_mixtures, m.bits[stream]};
}

__device__ bool valid_bits(int bits) {
    return bits >= 1 && bits <= 8;
}

// Four threads a symbol, each with four edges: all of them find out where the window starts.
__global__ void __launch_bounds__(kBlock)
    mixture_window_kernel(const Mixtures mixtures, int16_t* __restrict__ first, uint32_t* __restrict__ window) {
    __shared__ uint2 segments[kTailSegments];
    const SharedTail tail = load_tail(segments);
    const int quarter = threadIdx.x % 4;
    for (int stream = blockIdx.y; stream < mixtures.num_streams; stream += gridDim.y) {
        const MixtureView view = view_of(mixtures, stream);
        if (!valid_bits(view.bits)) continue;
        const int count = min(mixtures.count[stream], mixtures.capacity);
        const int step = 1 << (8 - view.bits), levels = 1 << view.bits;
        for (int j = blockIdx.x * (kBlock / 4) + threadIdx.x / 4; j < count; j += gridDim.x * (kBlock / 4)) {
            uint32_t most = view.weights[j];
            int mean = view.means[j];
            for (int k = 1; k < view.num_mixtures; ++k) {
                const uint32_t weight = view.weights[k * view.stride + j];
                if (weight > most) most = weight, mean = view.means[k * view.stride + j];
            }
            const int level = (mean + 64 * 256 + 64 * step) >> (15 - view.bits);
            const int from = max(0, min(level - 7, levels - (kWindow - 1)));
            const int edge = from + 4 * quarter;
            uint32_t sum[4] = {};
            for (int k = 0; k < view.num_mixtures; ++k) {
                for (int n = 0; n < 4; ++n) {
                    sum[n] += mass_below(view, k * view.stride + j, mixture_edge(edge + n, step), tail);
                }
            }
            uint32_t value[4];
            for (int n = 0; n < 4; ++n) {
                value[n] = (sum[n] << 4) + static_cast<uint32_t>((edge + n) * step);
                if (edge + n >= levels) value[n] = kProbabilityOne;
            }
            if (edge == 0) value[0] = 0;
            const size_t at = static_cast<size_t>(stream) * mixtures.capacity + j;
            reinterpret_cast<uint4*>(window)[4 * at + quarter] = make_uint4(value[0], value[1], value[2], value[3]);
            if (quarter == 0) first[at] = static_cast<int16_t>(from);
        }
    }
}

// One thread a symbol.
__global__ void __launch_bounds__(kBlock) mixture_intervals_kernel(const Intervals job) {
    __shared__ uint2 segments[kTailSegments];
    const SharedTail tail = load_tail(segments);
    const Mixtures& mixtures = job.mixtures;
    for (int stream = blockIdx.y; stream < mixtures.num_streams; stream += gridDim.y) {
        if (job.status[stream] != kOk) continue;
        const int count = mixtures.count[stream], bits = mixtures.bits[stream];
        const int64_t position = job.position[stream];
        if (!valid_bits(bits) || count < 0 || count > mixtures.capacity || position < 0 ||
            position > job.total_capacity - count) {
            if (blockIdx.x == 0 && threadIdx.x == 0) job.status[stream] = kBadLayout;
            continue;
        }
        const uint8_t* symbols = job.symbols + static_cast<size_t>(stream) * mixtures.capacity;
        const size_t to = static_cast<size_t>(stream) * job.total_capacity + position;
        for (int j = blockIdx.x * kBlock + threadIdx.x; j < count; j += gridDim.x * kBlock) {
            const int symbol = symbols[j];
            uint32_t start = 0, end = kProbabilityOne;
            if (symbol >> bits != 0) {
                job.status[stream] = kBadSymbol;  // whoever comes first or last: all write the same
            } else if (mixtures.num_mixtures == 0) {
                start = static_cast<uint32_t>(symbol) << (kProbabilityBits - bits);
                end = start + (kProbabilityOne >> bits);
            } else {
                const MixtureView view = view_of(mixtures, stream);
                start = mixture_cdf_at(view, j, symbol, tail);
                end = mixture_cdf_at(view, j, symbol + 1, tail);
            }
            job.start[to + j] = start;
            job.freq[to + j] = end - start;
        }
    }
}

// ---- decoder --------------------------------------------------------------------------------------------------------

// The symbols of one stream that a call decodes; the arrays start at this stream's part.
struct Group {
    MixtureView mixture;
    const int16_t* first;
    const uint32_t* window;
    const uint16_t* words;
    uint32_t num_words;  // that may be taken, at most 2^30
    uint32_t lanes;
    uint32_t phase;  // lane of symbol 0
    uint32_t count;  // >= 1
    int64_t* states;
    uint8_t* symbols;
};

constexpr uint32_t kStep = 4 * kMaxLanes;  // symbols between two looks at the words

// What a block keeps in shared memory. The rings are filled by asynchronous copies in units of 16 bytes; every row
// commits those that were asked for since the row before.
struct Inbox {
    static constexpr uint32_t kPlaces = 8 * kMaxLanes;  // windows in the ring
    static constexpr uint32_t kNoSymbol = kPlaces;  // the place of one more, of a symbol that has all the probability
    static constexpr uint32_t kQuarters = kWindow / 4;
    static constexpr uint32_t kWords = 8 * kStep;

    // Quarter by quarter, two places longer than need be: eight threads that each read one quarter of eight neighbours,
    // or write the quarters of two, touch every bank.
    uint4 window[kQuarters][kPlaces + 2];
    alignas(16) uint16_t words[kWords];
    uint2 tail[kTailSegments];
};

// The windows of a stream on their way into the inbox, row by row. Symbol j is at place (j + phase) % kPlaces. For the
// whole warp.
//
// Row r sends the copies of row r + kAhead, commits, and waits for those of row r + 2. What it overwrites is row r - 1
// at the latest, whose windows everybody has used before a vote that everybody has taken part in since.
template <int kPer, bool kUniform>
class Windows {
 public:
    static constexpr uint32_t kApart = kWarpSize / Inbox::kQuarters;  // windows that one copy of the warp covers
    static constexpr uint32_t kCopies = kPer * kWarpSize / kApart;
    static constexpr uint32_t kRows = Inbox::kPlaces / (kPer * kWarpSize);
    static constexpr uint32_t kAhead = kRows - 1 < kMaxPrior + 2 ? kRows - 1 : kMaxPrior + 2;
    static_assert(kAhead < 2 * kStep / (kPer * kWarpSize), "Words rely on it");

    // Leaves rows 0 and 1 there, and with them what was asked for before.
    __device__ Windows(const Group& group, Inbox& inbox) : inbox_(inbox), lanes_(group.lanes) {
        const uint32_t quarter = threadIdx.x % Inbox::kQuarters, lane = threadIdx.x / Inbox::kQuarters;
        from_ = kept(reinterpret_cast<const uint4*>(group.window) + quarter);
        to_ = kept(shared_address(&inbox.window[quarter][0]));
        place_ = lane;
        j_ = lane - group.phase;
        for (uint32_t n = 0; n < kCopies; ++n) end_[n] = kept(lane + n * kApart < group.lanes ? group.count : 0);
        if (!kUniform && threadIdx.x < Inbox::kQuarters) {
            inbox.window[quarter][Inbox::kNoSymbol] =
                make_uint4(quarter == 0 ? 0 : kProbabilityOne, kProbabilityOne, kProbabilityOne, kProbabilityOne);
        }
#pragma unroll 1
        for (uint32_t row = 0; row < kAhead; ++row) send();
        wait();
    }

    __device__ void advance() {
        send();
        wait();
    }

    __device__ void read(uint32_t place, uint32_t (&edges)[kWindow]) const {
#pragma unroll
        for (uint32_t q = 0; q < Inbox::kQuarters; ++q) {
            const uint4 unit = inbox_.window[q][place];
            edges[4 * q] = unit.x, edges[4 * q + 1] = unit.y, edges[4 * q + 2] = unit.z, edges[4 * q + 3] = unit.w;
        }
    }

 private:
    __device__ void send() {
        if (!kUniform) {
            const uint4* const from = from_ + static_cast<int64_t>(static_cast<int32_t>(j_)) * Inbox::kQuarters;
            copy<0>(to_ + static_cast<uint32_t>(place_ * sizeof(uint4)), from);
            j_ += lanes_;
            place_ = (place_ + lanes_) % Inbox::kPlaces;
        }
        __pipeline_commit();
    }

    template <uint32_t n>
    __device__ void copy(SharedAddress to, const uint4* from) {
        copy_if_less<16, n * kApart * sizeof(uint4), n * kApart * sizeof(uint4) * Inbox::kQuarters>(j_ + n * kApart,
                                                                                                    end_[n], to, from);
        if constexpr (n + 1 < kCopies) copy<n + 1>(to, from);
    }

    __device__ void wait() {
        __pipeline_wait_prior(kAhead - 2);
        __syncwarp();
    }

    Inbox& inbox_;
    const uint32_t lanes_;
    // Of this thread's next copies: a quarter of the window of symbol j_ + n * kApart, if that is below end_[n] (the
    // number of symbols, or 0 where there is no such lane), goes to place_ + n * kApart.
    const uint4* from_;
    SharedAddress to_;
    uint32_t j_, place_;
    uint32_t end_[kCopies];
};

// The words of a stream on their way into the inbox. All methods but peek are for the whole warp.
//
// Words start wherever the stream's part of them starts. The first unit of 16 bytes can hold up to 7 of what lies
// before, and indexes here count from the start of that unit.
//
// Every kStep symbols `send` asks for kSend more if the ring has room; as many at most are taken until the next time.
// After each call, more than kWords - kSend words that are not taken are in the ring or on their way (the constructor
// fills it, and from then on a call finds room whenever there are fewer). What was asked for before the last two calls
// has arrived, since a commit takes fewer than kAhead rows and they are fewer than two steps. So at the start of a step
// more than kWords - kSend - 2 kSend = kSend words are there: enough.
class Words {
 public:
    __device__ Words(const Group& group, Inbox& inbox)
        : words_(group.words),
          inbox_(inbox),
          offset_(static_cast<uint32_t>(reinterpret_cast<uintptr_t>(group.words) / sizeof(uint16_t) % kUnit)),
          end_(offset_ + group.num_words),
          next_(2 * offset_),
          sent_(0) {
        while (has_room()) send();
    }

    __device__ void send() {
        __syncwarp();  // everybody has read what is overwritten now
        if (!has_room()) return;
#pragma unroll
        for (uint32_t n = 0; n < kSend / kUnit; n += kWarpSize) {
            const uint32_t at = sent_ + kUnit * (n + threadIdx.x);
            uint16_t* const to = &inbox_.words[at % Inbox::kWords];
            const uint16_t* const from = words_ + (static_cast<int64_t>(at) - offset_);
            if (at + kUnit <= end_) {
                __pipeline_memcpy_async(to, from, kUnit * sizeof(uint16_t));
            } else {
#pragma unroll 1
                for (uint32_t i = 0; at + i < end_; ++i) to[i] = from[i];  // the last unit
            }
        }
        sent_ += kSend;
    }

    // The word `n` places after the next one; anything if there are no more.
    __device__ uint32_t peek(uint32_t n) const {
        const uint32_t at = (next_ + 2 * n) % (2 * Inbox::kWords);
        return *reinterpret_cast<const uint16_t*>(reinterpret_cast<const char*>(inbox_.words) + at);
    }
    __device__ void take(uint32_t n) { next_ += 2 * n; }
    __device__ uint32_t taken() const { return next_ / 2 - offset_; }
    __device__ bool too_many_taken() const { return next_ / 2 > end_; }

 private:
    static constexpr uint32_t kUnit = 8;
    static constexpr uint32_t kSend = 2 * kStep;

    __device__ bool has_room() const { return sent_ + kSend <= next_ / 2 + Inbox::kWords; }

    const uint16_t* words_;
    Inbox& inbox_;
    const uint32_t offset_, end_;
    uint32_t next_;  // the next word, in bytes, which saves an instruction where it counts
    uint32_t sent_;
};

struct Interval {
    uint32_t start;
    uint32_t freq;
    int symbol;
};

// Halves what is left of the edges until two are, by selections between registers: edge[0] and edge[1] become the ends
// of the slot's interval, given 2 kHalf intervals. A template, so that no index is left for run time.
template <int kHalf>
__device__ void halve(uint32_t (&edge)[kWindow + 1], uint32_t slot, int& symbol) {
    const bool up = edge[kHalf] <= slot;
#pragma unroll
    for (int n = 0; n <= kHalf; ++n) edge[n] = up ? edge[n + kHalf] : edge[n];
    symbol += up ? kHalf : 0;
    if constexpr (kHalf > 1) halve<kHalf / 2>(edge, slot, symbol);
}

// The interval of a window with start <= slot < start + freq; `symbol` is its number in the window. If the slot lies
// outside, slot - start >= freq, as unsigned numbers: below, the difference wraps; above, freq is 0.
__device__ Interval find_in_window(const uint32_t (&window)[kWindow], uint32_t slot) {
    uint32_t edge[kWindow + 1];
#pragma unroll
    for (int n = 0; n < kWindow; ++n) edge[n] = window[n];
    edge[kWindow] = edge[kWindow - 1];
    int symbol = 0;
    halve<kWindow / 2>(edge, slot, symbol);
    return {edge[0], edge[1] - edge[0], symbol};
}

// Finds the intervals of the lanes in `missing` by evaluating C: of four lanes at a time, with eight threads each and
// two edges a thread, first every 16th edge, then 16 edges from the greatest of those on that does not exceed the slot.
// `lane`, j, slot and found are this thread's. Not inline, to keep the rows that do without it close together.
__device__ __noinline__ Interval find_outside(MixtureView view, SharedTail tail, uint32_t missing, uint32_t lane,
                                              uint32_t j, uint32_t slot, Interval found) {
    constexpr int kTeam = 8, kTeams = kWarpSize / kTeam;
    const int team = threadIdx.x / kTeam, member = threadIdx.x % kTeam;
    const int levels = 1 << view.bits;
    // This lane's place in the queue.
    int place = missing >> lane & 1 ? __popc(missing & ((1u << lane) - 1)) : -1;
    while (missing != 0) {
        int source = 0;
        for (int n = 0; n < kTeams; ++n) {
            // A team that no lane is left for repeats what the one before does.
            if (n <= team && missing != 0) source = __ffs(missing) - 1;
            missing &= missing - 1;
        }
        const uint32_t at = __shfl_sync(kWarp, j, source);
        const uint32_t wanted = __shfl_sync(kWarp, slot, source);
        int base = 0;
        uint32_t low = 0, high = kProbabilityOne;
#pragma unroll 1
        for (int stride = kWindow; stride > 0; stride /= kWindow) {
            int reached = 0;  // edges of the team that do not exceed the slot
            for (int n = 0; n < 2; ++n) {
                const int edge = base + stride * (2 * member + n);
                const uint32_t value = edge < levels ? mixture_cdf_at(view, at, edge, tail) : kProbabilityOne;
                const bool below = value <= wanted;
                if (below) low = max(low, value);
                if (!below) high = min(high, value);
                reached += __popc(__ballot_sync(kWarp, below) >> (kTeam * team) & ((1u << kTeam) - 1));
            }
            base += stride * (reached - 1);
        }
        for (int n = 1; n < kTeam; n *= 2) {
            low = max(low, __shfl_xor_sync(kWarp, low, n));
            high = min(high, __shfl_xor_sync(kWarp, high, n));
        }
        const int answer = (place & (kTeams - 1)) * kTeam;
        const uint32_t start = __shfl_sync(kWarp, low, answer), end = __shfl_sync(kWarp, high, answer);
        const int symbol = __shfl_sync(kWarp, base, answer);
        if (place >= 0 && place < kTeams) found = {start, end - start, symbol};
        place = place < kTeams ? -1 : place - kTeams;
    }
    return found;
}

// Decodes a group with `kPer` lanes a thread. kOk or kTruncated; states change in the first case only. Symbols are
// written less the start of their windows, modulo 256.
template <int kPer, bool kUniform>
__device__ int32_t decode_group(const Group& group, Inbox& inbox, uint32_t& words_taken) {
    const uint32_t lanes = kept(group.lanes), count = kept(group.count), phase = kept(group.phase);
    // With less than 32 lanes, several threads do the same for one of them; the first of them speaks for it.
    const uint32_t lane = threadIdx.x % lanes;  // and lane + 32, if kPer is 2
    const uint32_t counted = kept(lanes < kWarpSize ? (1u << lanes) - 1 : kWarp), below = kept((1u << lane) - 1);
    const uint32_t writable = kept(threadIdx.x < lanes ? count : 0);
    uint8_t* const symbols = kept(group.symbols);
    const SharedTail tail = {inbox.tail};

    uint64_t x[kPer];
    for (int p = 0; p < kPer; ++p) x[p] = static_cast<uint64_t>(group.states[lane + kWarpSize * p]);
    Words words(group, inbox);
    Windows<kPer, kUniform> windows(group, inbox);
    uint32_t window[kPer][kWindow], place[kPer];
    uint32_t j = lane - phase;  // this thread's symbol in the row, and j + 32; none, if not below count
    const auto find_places = [&](uint32_t first) {
        for (int p = 0; p < kPer; ++p) {
            const uint32_t at = first + kWarpSize * p;
            place[p] = at < count ? (at + phase) % Inbox::kPlaces : Inbox::kNoSymbol;
        }
    };
    const auto read_windows = [&] {
        for (int p = 0; p < kPer; ++p) {
            if (!kUniform) windows.read(place[p], window[p]);
        }
    };
    find_places(j);
    read_windows();
    find_places(j + lanes);

    const auto decode_row = [&] {
        Interval found[kPer];
        uint32_t slot[kPer];
        for (int p = 0; p < kPer; ++p) {
            slot[p] = static_cast<uint32_t>(x[p]) & (kProbabilityOne - 1);
            if (kUniform) {
                const int shift = j + kWarpSize * p < count ? kProbabilityBits - group.mixture.bits : kProbabilityBits;
                found[p] = {slot[p] >> shift << shift, 1u << shift, static_cast<int>(slot[p] >> shift)};
            } else {
                found[p] = find_in_window(window[p], slot[p]);
            }
        }
        read_windows();  // of the next row

        const auto move = [&](int p) {
            const uint32_t upper = __funnelshift_r(static_cast<uint32_t>(x[p]), upper_half(x[p]), kProbabilityBits);
            return static_cast<uint64_t>(found[p].freq) * upper + (slot[p] - found[p].start);
        };
        const auto store = [&](int p) {
            const uint32_t at = j + kWarpSize * p;
            if (at < writable) symbols[at] = static_cast<uint8_t>(found[p].symbol);
        };
        // Lanes take their words in order; `taken` counts those of the row. Nearly always a lane takes one or none.
        uint64_t moved[kPer];
        uint32_t taken = 0, words_before[kPer], shift[kPer], mask[kPer], word[kPer];
        bool outside[kPer], unusual = false;
        for (int p = 0; p < kPer; ++p) {
            moved[p] = move(p);
            outside[p] = slot[p] - found[p].start >= found[p].freq;
            const bool one = upper_half(moved[p]) == 0;
            unusual |= outside[p] | (one & (static_cast<uint32_t>(moved[p]) >> 16 == 0));
            shift[p] = one ? 16 : 0;
            mask[p] = one ? 0xffff : 0;
            const uint32_t ones = __ballot_sync(kWarp, one);
            words_before[p] = taken + __popc(ones & below);
            taken += __popc(ones & counted);
        }
        const bool rare = __any_sync(kWarp, unusual);
        windows.advance();
        find_places(j + 2 * lanes);
        for (int p = 0; p < kPer; ++p) word[p] = kept(words.peek(words_before[p]));
        for (int p = 0; p < kPer; ++p) store(p);

        if (rare) {
            taken = 0;
            for (int p = 0; p < kPer; ++p) {
                if (!kUniform) {
                    const uint32_t missing = __ballot_sync(kWarp, outside[p]) & counted;
                    const uint32_t at = j + kWarpSize * p;
                    found[p] = find_outside(group.mixture, tail, missing, lane, at, slot[p], found[p]);
                    if (outside[p]) found[p].symbol -= group.first[at];
                    store(p);
                }
                moved[p] = move(p);
                const uint32_t ones = __ballot_sync(kWarp, moved[p] < kStateLow) & counted;
                const uint32_t twos = __ballot_sync(kWarp, moved[p] >> 16 == 0) & counted;
                words_before[p] = taken + __popc(ones & below) + __popc(twos & below);
                taken += __popc(ones) + __popc(twos);
            }
            for (int p = 0; p < kPer; ++p) {
                if (moved[p] >> 16 == 0) moved[p] = moved[p] << 16 | words.peek(words_before[p]++);
                if (moved[p] < kStateLow) moved[p] = moved[p] << 16 | words.peek(words_before[p]);
                shift[p] = mask[p] = 0;
            }
        }
        words.take(taken);
        for (int p = 0; p < kPer; ++p) x[p] = moved[p] << shift[p] | (word[p] & mask[p]);
        j += lanes;
    };

    for (uint32_t rows = (phase + count + lanes - 1) / lanes; rows > 0 && !words.too_many_taken();) {
        const uint32_t now = min(rows, kStep / lanes);
        rows -= now;
        for (uint32_t row = now; row > 0; --row) decode_row();
        if (rows > 0) words.send();
    }
    __pipeline_wait_prior(0);  // no copy may be under way when the inbox goes
    words_taken = words.taken();
    if (words.too_many_taken()) return kTruncated;
    for (int p = 0; p < kPer; ++p) {
        if (threadIdx.x < lanes) group.states[lane + kWarpSize * p] = static_cast<int64_t>(x[p]);
    }
    return kOk;
}

// Writes zeros over a group's symbols.
__device__ void clear_symbols(uint8_t* symbols, int count) {
    for (int j = threadIdx.x; j < count; j += kWarpSize) symbols[j] = 0;
}

__device__ bool valid_lanes(int lanes) {
    return lanes >= 1 && lanes <= kMaxLanes && (lanes & (lanes - 1)) == 0;
}

// One warp a stream.
template <bool kUniform>
__global__ void __launch_bounds__(kWarpSize, 1) rans_decode_mixture_kernel(const Decoding job) {
    __shared__ Inbox inbox;
    load_tail(inbox.tail);
    const Mixtures& mixtures = job.mixtures;
    const int stream = blockIdx.x;
    const int lanes = job.lanes[stream], count = mixtures.count[stream], capacity = mixtures.capacity;
    const int64_t position = job.position[stream], next = job.next[stream], end = job.end[stream];
    const size_t at = static_cast<size_t>(stream) * capacity;

    int32_t status = job.status[stream];
    if (status == kOk && (!valid_lanes(lanes) || count < 0 || count > capacity || position < 0 || next < 0 ||
                          next > end || end > job.num_words || !valid_bits(mixtures.bits[stream]))) {
        status = kBadLayout;
    }
    uint32_t words_taken = 0;
    if (status == kOk && count > 0) {
        Group group = {};
        if (kUniform) {
            group.mixture.bits = mixtures.bits[stream];
        } else {
            group.mixture = view_of(mixtures, stream);
            group.first = job.first + at;
            group.window = job.window + kWindow * at;
        }
        // No more than two words a symbol are taken, so that 32 bits are enough to count them.
        group.words = job.words + next;
        group.num_words = static_cast<uint32_t>(min(end - next, 2 * static_cast<int64_t>(count)));
        group.lanes = lanes;
        group.phase = static_cast<uint32_t>(position & (lanes - 1));
        group.count = count;
        group.states = job.states + static_cast<size_t>(stream) * kMaxLanes;
        group.symbols = job.symbols + at;
        status = lanes <= kWarpSize ? decode_group<1, kUniform>(group, inbox, words_taken)
                                    : decode_group<2, kUniform>(group, inbox, words_taken);
    }
    __syncwarp();  // everybody has read what the first thread overwrites, and written the symbols that are cleared
    if (status != kOk) clear_symbols(job.symbols + at, min(count, capacity));
    if (threadIdx.x == 0) {
        job.status[stream] = status;
        if (status == kOk) {
            job.next[stream] = next + words_taken;
            job.position[stream] = position + count;
        }
    }
}

// Adds to every symbol the start of its window, as decode_group leaves it to do.
__global__ void __launch_bounds__(kBlock) add_first_kernel(const Decoding job) {
    const Mixtures& mixtures = job.mixtures;
    for (int stream = blockIdx.y; stream < mixtures.num_streams; stream += gridDim.y) {
        if (job.status[stream] != kOk) continue;
        const size_t at = static_cast<size_t>(stream) * mixtures.capacity;
        const int count = mixtures.count[stream];
        for (int j = blockIdx.x * kBlock + threadIdx.x; j < count; j += gridDim.x * kBlock) {
            job.symbols[at + j] = static_cast<uint8_t>(job.symbols[at + j] + job.first[at + j]);
        }
    }
}

// ---- encoder --------------------------------------------------------------------------------------------------------

// 1 / freq within a relative 2^-51, for freq = 1..2^20: a guess within 2^-20 and two steps of Newton's, each of which
// squares the error. A division would be as good, but it has a branch for operands that do not occur here.
__device__ double reciprocal(uint32_t freq) {
    float guess = static_cast<float>(freq);
#ifdef L2C_CUDA_EMULATION
    guess = approximate_reciprocal(guess);
#else
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(guess));
#endif
    const double d = static_cast<double>(freq);
    double r = static_cast<double>(guess);
    for (int n = 0; n < 2; ++n) r += r * (1.0 - d * r);
    return r;
}

// q = floor(x / freq) < 2^28. The exact quotient is q + i / freq with 0 <= i < freq <= 2^20, so at most q + 1 - 2^-20.
// The product is off by less than 2^28 (2^-51 + 2^-53) < 2^-22, the sum by less than 2^-25: with 2^-21 added, the
// result lies above q and below q + 1, and truncation gives q.
__device__ uint32_t quotient(uint64_t x, double inverse) {
    return static_cast<uint32_t>(static_cast<double>(static_cast<int64_t>(x)) * inverse + 1.0 / (1 << 21));
}

// A stream to encode; the arrays start at this stream's part.
struct Whole {
    const uint32_t* start;
    const uint32_t* freq;
    uint32_t lanes;
    uint32_t total;  // >= 1
    int64_t* states;
    uint16_t* buffer_end;
    uint32_t room;  // words that fit below buffer_end
};

// Intervals on their way to the encoder, which every thread copies for its own lanes, row by row from the last.
struct Outbox {
    static constexpr uint32_t kRows = 16;
    uint32_t start[kRows][kMaxLanes];
    uint32_t freq[kRows][kMaxLanes];
};

// Encodes a stream with `kPer` lanes a thread. The number of words goes to `used`; kNoRoom if they are too many for the
// buffer, which then holds the last of them, and states do not change.
template <int kPer>
__device__ int32_t encode_stream(const Whole& whole, Outbox& outbox, uint32_t& used) {
    constexpr uint32_t kAhead = kMaxPrior + 2, kRowBytes = sizeof outbox.start[0];
    static_assert(kAhead < Outbox::kRows);
    const uint32_t lanes = kept(whole.lanes), room = kept(whole.room);
    const uint32_t lane = threadIdx.x;  // and lane + 32, if kPer is 2
    const uint32_t total = kept(lane < lanes ? whole.total : 0), below = kept((1u << lane) - 1);
    const uint32_t *const starts = kept(whole.start), *const freqs = kept(whole.freq);
    uint16_t* const end = kept(whole.buffer_end);

    uint64_t x[kPer];
    for (int p = 0; p < kPer; ++p) {
        x[p] = lane < lanes ? static_cast<uint64_t>(whole.states[lane + kWarpSize * p]) : kStateLow;
    }
    // Rows are counted down: row r sends the copies of row r - kAhead and then waits for those of row r - 2.
    const uint32_t rows = (whole.total + lanes - 1) / lanes;
    uint32_t row_sent = rows - 1;
    uint32_t j_sent = row_sent * lanes + lane;  // nothing is sent where it is not below total
    const SharedAddress to_start = kept(shared_address(&outbox.start[0][lane]));
    const SharedAddress to_freq = kept(shared_address(&outbox.freq[0][lane]));
    const auto send = [&] {
        const uint32_t to = row_sent-- % Outbox::kRows * kRowBytes;
        const int64_t from = static_cast<int32_t>(j_sent);
        copy_if_less<4>(j_sent, total, to_start + to, starts + from);
        copy_if_less<4>(j_sent, total, to_freq + to, freqs + from);
        if constexpr (kPer == 2) {
            copy_if_less<4, 4 * kWarpSize, 4 * kWarpSize>(j_sent + kWarpSize, total, to_start + to, starts + from);
            copy_if_less<4, 4 * kWarpSize, 4 * kWarpSize>(j_sent + kWarpSize, total, to_freq + to, freqs + from);
        }
        __pipeline_commit();
        j_sent -= lanes;
    };
    // A thread without a symbol encodes one of probability one, which changes no state and takes no word.
    struct Symbol {
        uint32_t start, freq;
        double inverse;
    };
    uint32_t row_read = rows - 1, j_read = row_read * lanes + lane;
    const auto read = [&](Symbol(&symbols)[kPer]) {
        for (int p = 0; p < kPer; ++p) {
            const uint32_t slot = row_read % Outbox::kRows, at = lane + kWarpSize * p;
            const bool exists = j_read + kWarpSize * p < total;
            const uint32_t start = outbox.start[slot][at], freq = outbox.freq[slot][at];
            symbols[p].start = exists ? start : 0;
            symbols[p].freq = exists ? freq : kProbabilityOne;
            symbols[p].inverse = reciprocal(symbols[p].freq);
        }
        --row_read;
        j_read -= lanes;
    };
#pragma unroll 1
    for (uint32_t n = 0; n < kAhead; ++n) send();
    __pipeline_wait_prior(kAhead - 2);
    Symbol symbol[kPer];
    read(symbol);

    uint32_t count = 0;  // words
#pragma unroll 1
    for (uint32_t row = rows; row > 0; --row) {
        Symbol next[kPer];
        read(next);
        uint32_t offset[kPer], taken = 0;
        bool one[kPer], two[kPer];
        for (int p = 0; p < kPer; ++p) {
            const uint32_t top = static_cast<uint32_t>(x[p] >> (kStateBits - kProbabilityBits));
            one[p] = top >= symbol[p].freq;
            two[p] = top >> 16 >= symbol[p].freq;
            const uint32_t ones = __ballot_sync(kWarp, one[p]), twos = __ballot_sync(kWarp, two[p]);
            offset[p] = taken + __popc(ones & below) + __popc(twos & below);
            taken += __popc(ones) + __popc(twos);
        }
        count += taken;
        for (int p = 0; p < kPer; ++p) {
            const uint32_t high = count - offset[p], low = high - (two[p] ? 1 : 0);  // how far below the end they go
            if (two[p] & (high <= room)) *(end - high) = static_cast<uint16_t>(x[p] >> 16);
            if (one[p] & (low <= room)) *(end - low) = static_cast<uint16_t>(x[p]);
            x[p] >>= two[p] ? 32 : one[p] ? 16 : 0;
            const uint32_t q = quotient(x[p], symbol[p].inverse);
            x[p] += static_cast<uint64_t>(q) * (kProbabilityOne - symbol[p].freq) + symbol[p].start;
            symbol[p] = next[p];
        }
        send();
        __pipeline_wait_prior(kAhead - 2);
    }
    __pipeline_wait_prior(0);  // no copy may be under way when the outbox goes
    used = count;
    if (count > room) return kNoRoom;
    for (int p = 0; p < kPer; ++p) {
        if (lane < lanes) whole.states[lane + kWarpSize * p] = static_cast<int64_t>(x[p]);
    }
    return kOk;
}

// One warp a stream.
__global__ void __launch_bounds__(kWarpSize, 1) rans_encode_kernel(const Encoding job) {
    __shared__ Outbox outbox;
    const int stream = blockIdx.x;
    const int lanes = job.lanes[stream];
    const int64_t total = job.total[stream], capacity = job.total_capacity, room = job.buffer_capacity;
    int32_t status = job.status[stream];
    if (status == kOk && (!valid_lanes(lanes) || total < 0 || total > capacity)) status = kBadLayout;
    uint32_t used = 0;
    if (status == kOk && total > 0) {
        const size_t at = static_cast<size_t>(stream) * capacity;
        Whole whole = {};
        whole.start = job.start + at;
        whole.freq = job.freq + at;
        whole.lanes = static_cast<uint32_t>(lanes);
        whole.total = static_cast<uint32_t>(total);
        whole.states = job.states + static_cast<size_t>(stream) * kMaxLanes;
        whole.buffer_end = job.buffer + static_cast<size_t>(stream + 1) * room;
        whole.room = static_cast<uint32_t>(min(room, 2 * total));  // no more are needed
        status = lanes <= kWarpSize ? encode_stream<1>(whole, outbox, used) : encode_stream<2>(whole, outbox, used);
    }
    __syncwarp();  // everybody has read what the first thread overwrites now
    if (threadIdx.x == 0) {
        job.status[stream] = status;
        job.first_word[stream] = status == kOk ? room - used : room;
    }
}

// ---- launches -------------------------------------------------------------------------------------------------------

constexpr int kMaxGridY = 65535;

const char* message(cudaError_t error) {
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Runs `launch` with the queue's device as the current one, and sets it back.
template <class Launch>
const char* on_device(const Queue& queue, Launch launch) {
    int before = 0;
    if (const char* why = message(cudaGetDevice(&before))) return why;
    if (const char* why = message(cudaSetDevice(queue.device))) return why;
    launch(static_cast<cudaStream_t>(queue.stream));
    const char* const why = message(cudaGetLastError());
    cudaSetDevice(before);
    return why;
}

// Blocks for `per_stream` threads of each stream.
dim3 parallel_grid(int num_streams, int64_t per_stream) {
    return dim3(static_cast<unsigned>((per_stream + kBlock - 1) / kBlock),
                static_cast<unsigned>(num_streams < kMaxGridY ? num_streams : kMaxGridY));
}

}  // namespace

const char* mixture_window(const Mixtures& mixtures, int16_t* first, uint32_t* window, Queue queue) {
    if (mixtures.num_streams == 0 || mixtures.capacity == 0) return nullptr;
    return on_device(queue, [&](cudaStream_t stream) {
        L2C_LAUNCH(mixture_window_kernel, parallel_grid(mixtures.num_streams, 4 * int64_t{mixtures.capacity}), kBlock,
                   stream, mixtures, first, window);
    });
}

const char* rans_decode_mixture(const Decoding& job, Queue queue) {
    if (job.mixtures.num_streams == 0 || job.mixtures.capacity == 0) return nullptr;
    return on_device(queue, [&](cudaStream_t stream) {
        if (job.mixtures.num_mixtures == 0) {
            L2C_LAUNCH(rans_decode_mixture_kernel<true>, job.mixtures.num_streams, kWarpSize, stream, job);
        } else {
            L2C_LAUNCH(rans_decode_mixture_kernel<false>, job.mixtures.num_streams, kWarpSize, stream, job);
            L2C_LAUNCH(add_first_kernel, parallel_grid(job.mixtures.num_streams, job.mixtures.capacity), kBlock, stream,
                       job);
        }
    });
}

const char* mixture_intervals(const Intervals& job, Queue queue) {
    if (job.mixtures.num_streams == 0 || job.mixtures.capacity == 0) return nullptr;
    return on_device(queue, [&](cudaStream_t stream) {
        L2C_LAUNCH(mixture_intervals_kernel, parallel_grid(job.mixtures.num_streams, job.mixtures.capacity), kBlock,
                   stream, job);
    });
}

const char* rans_encode(const Encoding& job, Queue queue) {
    if (job.num_streams == 0) return nullptr;
    return on_device(
        queue, [&](cudaStream_t stream) { L2C_LAUNCH(rans_encode_kernel, job.num_streams, kWarpSize, stream, job); });
}

}  // namespace l2c::cuda
