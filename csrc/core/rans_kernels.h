// What the coder (rans.h) asks of a machine: one table of functions per instruction set, all with equal results.
//
// Plain data only, so that the files compiled for AVX2 and AVX-512 share no inline code with the rest (mixture_cdf.h
// says why). `static inline` for the same reason.

#pragma once

#include <cstddef>
#include <cstdint>

#include "core/mixture_cdf.h"

namespace l2c {

constexpr int kStateBits = 48;
constexpr uint64_t kStateLow = uint64_t{1} << 32;  // states stay in [2^32, 2^48)
constexpr int kMaxLanes = 64;

// The encoder keeps [start, start + freq) of a symbol in 5 bytes, 0 <= start < 2^20, 1 <= freq <= 2^20:
// low = start | ((freq - 1) % 2^12) << 20, high = (freq - 1) / 2^12.
static inline uint32_t pack_low(uint32_t start, uint32_t freq) {
    return start | (freq - 1) << 20;
}
static inline uint8_t pack_high(uint32_t freq) {
    return static_cast<uint8_t>((freq - 1) >> 12);
}
static inline uint32_t unpack_start(uint32_t low) {
    return low & (kProbabilityOne - 1);
}
static inline uint32_t unpack_freq(uint32_t low, uint8_t high) {
    return (low >> 20 | uint32_t{high} << 12) + 1;
}

// Words a kernel may touch before or after those it uses: encode_rows writes below the words it returns, decode_mixture
// reads past `words_end` and notices afterwards. One row takes at most 2 words a lane.
constexpr size_t kWordMargin = 2 * kMaxLanes + 32;

struct Kernels {
    // Intervals of symbols [0, n), for the encoder.
    Status (*mixture_intervals)(const MixtureView&, const uint8_t* symbols, size_t n, uint32_t* low, uint8_t* high);
    // C(edges[j]) of symbol j; every edge is in 0..2^bits.
    Status (*mixture_cdf)(const MixtureView&, const int32_t* edges, size_t n, uint32_t* out);
    // Encodes rows * lanes symbols from the last to the first. Words go below words_end; returns the lowest one.
    uint16_t* (*encode_rows)(const uint32_t* low, const uint8_t* high, size_t rows, int lanes, uint64_t* states,
                             uint16_t* words_end);
    // Decodes rows * lanes symbols; moves *words on. kTruncated if it went past words_end.
    Status (*decode_mixture)(const MixtureView&, uint8_t* symbols, size_t rows, int lanes, uint64_t* states,
                             const uint16_t** words, const uint16_t* words_end);
    void (*mixture_params)(const ParamsJob&);
};

const Kernels& scalar_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#elif defined(__aarch64__)
const Kernels& neon_kernels();
#endif

// Encodes one symbol on state x; `words` moves down. A state in [2^32, 2^48) ends in the same range after at most two
// words: x < freq 2^28 gives x / freq < 2^28, and two words bring any 48-bit state below 2^16 <= freq 2^28.
//
// The quotient by double is exact: x < 2^48 and freq <= 2^20 are exact in double, q = floor(x / freq) < 2^28, and if
// x / freq is no integer it is at most q + 1 - 2^-20, which is a double, so rounding cannot reach q + 1.
static inline uint64_t encode_symbol(uint64_t x, uint32_t start, uint32_t freq, uint16_t*& words) {
    const uint64_t limit = uint64_t{freq} << (kStateBits - kProbabilityBits);
    while (x >= limit) {
        *--words = static_cast<uint16_t>(x);
        x >>= 16;
    }
    const uint64_t q = static_cast<uint64_t>(static_cast<int64_t>(static_cast<double>(static_cast<int64_t>(x)) /
                                                                  static_cast<double>(static_cast<int32_t>(freq))));
    return x + q * (kProbabilityOne - freq) + start;  // (q << 20) + (x - q freq) + start
}

// The way back: the state after a symbol [start, start + freq) was read from slot = x % 2^20. The caller refills.
static inline uint64_t decode_symbol(uint64_t x, uint32_t start, uint32_t freq) {
    return freq * (x >> kProbabilityBits) + (x & (kProbabilityOne - 1)) - start;
}

// Brings x back to >= 2^32; false if the words are used up.
static inline bool refill(uint64_t& x, const uint16_t*& words, const uint16_t* words_end) {
    while (x < kStateLow) {
        if (words >= words_end) return false;
        x = x << 16 | *words++;
    }
    return true;
}

static inline uint16_t* encode_rows_plain(const uint32_t* low, const uint8_t* high, size_t rows, int lanes,
                                          uint64_t* states, uint16_t* words) {
    for (size_t row = rows; row-- > 0;) {
        for (int lane = lanes; lane-- > 0;) {
            const size_t j = row * lanes + lane;
            states[lane] = encode_symbol(states[lane], unpack_start(low[j]), unpack_freq(low[j], high[j]), words);
        }
    }
    return words;
}

static inline Status mixture_intervals_plain(const MixtureView& view, const uint8_t* symbols, size_t n, uint32_t* low,
                                             uint8_t* high) {
    for (size_t j = 0; j < n; ++j) {
        if (symbols[j] >> view.bits != 0) return kBadSymbol;
        const Status status = check_parameters(view, j);
        if (status != kOk) return status;
        const uint32_t start = mixture_cdf_at(view, j, symbols[j]);
        const uint32_t freq = mixture_cdf_at(view, j, symbols[j] + 1) - start;
        low[j] = pack_low(start, freq);
        high[j] = pack_high(freq);
    }
    return kOk;
}

static inline Status mixture_cdf_plain(const MixtureView& view, const int32_t* edges, size_t n, uint32_t* out) {
    for (size_t j = 0; j < n; ++j) {
        const Status status = check_parameters(view, j);
        if (status != kOk) return status;
        out[j] = mixture_cdf_at(view, j, edges[j]);
    }
    return kOk;
}

}  // namespace l2c
