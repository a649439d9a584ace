// The range coder of csrc/core/rans.h on a GPU: many streams (pictures, tiles) in one launch. This header is what the
// bindings and the kernels share, and the contract that any other implementation of these operators keeps.
//
// ---- Arrays ---------------------------------------------------------------------------------------------------------
//
// All on the device, contiguous, in the order given. N streams; a group is a call's symbols, at most S of each stream.
//
//   lanes       int32  [N]        1, 2, 4, ..., 64
//   position    int64  [N]        coder symbols before this group; its symbol j is in lane (position + j) % lanes
//   count       int32  [N]        symbols of this group, 0..S
//   bits        int32  [N]        b, 1..8
//   states      int64  [N, 64]    lane states in [2^32, 2^48); what lies beyond the stream's lanes is not touched
//   words       uint16 [W]        the words of all streams; 16-byte aligned
//   next, end   int64  [N]        words[next] ... words[end - 1] are those of a stream that are left
//   status      int32  [N]        0, or the first error of a stream (below), which then stays as it is
//   weights     uint16 [K, N, S]  parameters of core/mixture_cdf.h; of symbol j of stream i at [k, i, j]
//   means       int16  [K, N, S]
//   inv_scales  uint16 [K, N, S]
//   first       int16  [N, S]     the edge where a symbol's window starts, 0 <= first <= max(0, 2^b - 15)
//   window      uint32 [N, S, 16] C(first) ... C(first + 15), where edges past 2^b hold 2^20; 16-byte aligned
//   symbols     uint8  [N, S]
//   start, freq uint32 [N, T]     interval of coder symbol p of stream i at [i, p]
//   total       int64  [N]        coder symbols of a whole stream, 0..T
//   buffer      uint16 [N, B]     words of an encoded stream: buffer[i, first_word[i]] ... buffer[i, B - 1]
//   first_word  int64  [N]
//
// What lies beyond count or total does not matter and is not written. S, T < 2^29.
//
// ---- Operators ------------------------------------------------------------------------------------------------------
//
//   mixture_window       weights, means, inv_scales, bits, count -> first, window.
//                        Where a window lies decides the speed, not the result. The rule: the level nearest to the
//                        mean m of the heaviest component (the first of them on a tie), floor((m + 64 * 256 + 64 d) /
//                        (128 d)) with d = 2^(8-b), is the middle of the window's 15 symbols, as far as the range
//                        allows.
//   rans_decode_mixture  Decodes a group: symbols; states, next and position move on. Parameters are not checked.
//                        K = 0: uniform symbols of b bits (start = symbol << (20 - b)), which need no window.
//                        In error: all symbols of the group are 0; states, next and position stay as they were.
//   mixture_intervals    symbols -> start, freq at [i, position[i] + j]; K = 0 as above. position stays as it is.
//                        In error: the stream's intervals are any numbers.
//   rans_encode          Encodes all symbols of a stream, from the last to the first: states (start values in, those
//                        of the stream's header out; the hash in lane 0 is the caller's), buffer, first_word. The
//                        words are those of RangeEncoder::finish. B = 2 T always suffices.
//                        In error: first_word = B, states stay as they were.
//
// Each call only puts work on a stream of the device; results are there when that stream has got so far.

#pragma once

#include <cstdint>

#include "core/mixture_cdf.h"

namespace l2c::cuda {

// Codes of `status`: kBadSymbol (mixture_intervals), kTruncated (rans_decode_mixture), and two that the CPU lacks.
constexpr int32_t kBadLayout = 5;  // lanes, position, count, bits, total, next or end lies outside its range
constexpr int32_t kNoRoom = 6;     // rans_encode: the buffer is too small

constexpr int kWindow = 16;  // edges of a window
constexpr int kMaxCapacity = (1 << 29) - 1;

// Where the work goes: `stream` is a cudaStream_t of `device`, null for the device's default one.
struct Queue {
    int device;
    void* stream;
};

struct Mixtures {
    const uint16_t* weights;
    const int16_t* means;
    const uint16_t* inv_scales;
    const int32_t* bits;
    const int32_t* count;
    int num_streams;   // N
    int capacity;      // S
    int num_mixtures;  // K; 0: uniform symbols, and the three arrays of parameters may be null
};

struct Decoding {
    Mixtures mixtures;
    const int16_t* first;  // this and `window` may be null if K = 0
    const uint32_t* window;
    const int32_t* lanes;
    int64_t* position;
    int64_t* states;
    const uint16_t* words;
    int64_t num_words;  // W
    int64_t* next;
    const int64_t* end;
    int32_t* status;
    uint8_t* symbols;
};

struct Intervals {
    Mixtures mixtures;
    const uint8_t* symbols;
    const int64_t* position;
    uint32_t* start;
    uint32_t* freq;
    int64_t total_capacity;  // T
    int32_t* status;
};

struct Encoding {
    const int32_t* lanes;
    const int64_t* total;
    const uint32_t* start;
    const uint32_t* freq;
    int64_t* states;
    uint16_t* buffer;
    int64_t* first_word;
    int32_t* status;
    int num_streams;          // N
    int64_t total_capacity;   // T
    int64_t buffer_capacity;  // B
};

// Each returns null, or why nothing was launched.
const char* mixture_window(const Mixtures& mixtures, int16_t* first, uint32_t* window, Queue queue);
const char* rans_decode_mixture(const Decoding& job, Queue queue);
const char* mixture_intervals(const Intervals& job, Queue queue);
const char* rans_encode(const Encoding& job, Queue queue);

}  // namespace l2c::cuda
