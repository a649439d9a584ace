// The coder's kernels on vectors of 16-bit words, once for every instruction set `I` (rans_avx2.cpp, rans_avx512.cpp).
//
// `I` offers a vector V of kWords 16-bit words, or kQuads = kWords / 4 states of 64 bits, a mask M, and the operations
// used below. C(i) needs 16 bits only: sum_k floor(w sigma / 2^16) <= 65520, and C(i) = (sum << 4) + e <= slot with
// e = i S <= 255 is the same as q = ceil((e - slot % 16) / 16) <= h = floor(slot / 16) and sum <= h - q.
//
// Two ways to search, both without tables of C:
//   binary  a word is a lane; b steps. For many lanes, where throughput counts. The first step needs no state, and is
//           taken for the next row while this row's chain waits.
//   window  few lanes mean long chains state -> symbol -> state, but also few bits, so most symbols are one of the
//           three around the mean. C at the edges of these is computed for many symbols at once, without a state; what
//           is left to the chain is scalar and short. A symbol outside is searched alone, kWords edges at a time.
//
// Everything is in an anonymous namespace: each file gets its own code (see core/mixture_cdf.h).

#pragma once

#include "core/rans_kernels.h"

namespace l2c {
namespace {

constexpr int log2_of(int n) {
    return n <= 1 ? 0 : 1 + log2_of(n / 2);
}

// f(0), ..., f(N - 1), unrolled.
template <int N, class F>
inline __attribute__((always_inline)) void each(F f) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) f(n);
}

// Edge e = i S sits at 64 t = 128 e + bias. As 16-bit words 128 e may wrap, the sum does not.
inline int edge_bias(int bits) {
    return -64 * ((1 << (8 - bits)) + 256);
}

// Parameters seen so far that no valid model has; read once, at the end.
template <class I>
struct Suspects {
    typename I::V weights = I::set1(0);
    typename I::V scales = I::set1(32767);

    void add_sum(typename I::V sum) { weights = I::or_(weights, I::xor_(sum, I::set1(kWeightSum))); }
    void add_scale(typename I::V v) { scales = I::min_s(scales, v); }
    Status status() const {
        if (I::any(I::le_s(scales, I::set1(0)))) return kBadScale;
        return I::all(I::eq(weights, I::set1(0))) ? kOk : kBadWeights;
    }
};

// Parameters of N vectors of symbols; component k of vector n is at [k * N + n].
template <class I, int N>
struct Parameters {
    typename I::V w[kMaxMixtures * N], m[kMaxMixtures * N], v[kMaxMixtures * N];

    // `load(values, n)` loads vector n from the symbol that `values` points at.
    template <class Load>
    void read(const MixtureView& view, size_t j, Suspects<I>& suspects, Load load) {
        typename I::V sum[N];
        each<N>([&](int n) { sum[n] = I::set1(0); });
        for (int k = 0; k < view.num_mixtures; ++k) {
            const size_t at = k * view.stride + j;
            each<N>([&](int n) {
                w[k * N + n] = load(view.weights + at, n);
                m[k * N + n] = load(view.means + at, n);
                v[k * N + n] = load(view.inv_scales + at, n);
                sum[n] = I::adds_u(sum[n], w[k * N + n]);
                suspects.add_scale(v[k * N + n]);
            });
        }
        each<N>([&](int n) { suspects.add_sum(sum[n]); });
    }
};

// Adds components k .. k + C - 1 to `sum`.
template <class I, int N, int C>
inline void add_components(const typename I::V (&edge)[N], const Parameters<I, N>& p, int k, typename I::V (&sum)[N]) {
    typename I::V edges[C * N], out[C * N];
    each<C * N>([&](int j) { edges[j] = edge[j % N]; });
    I::template components<C * N>(edges, p.m + k * N, p.v + k * N, p.w + k * N, out);
    each<C * N>([&](int j) { sum[j % N] = I::add(sum[j % N], out[j]); });
}

// sum_k floor(w sigma / 2^16) at `edge`, for N vectors. Several components side by side, stage by stage: one chain of
// twenty dependent instructions leaves most of the machine idle, and its schedulers do not look far ahead.
template <class I, int N>
inline void sums_at(const typename I::V (&edge)[N], const Parameters<I, N>& p, int K, typename I::V (&sum)[N]) {
    constexpr int kTogether = N >= I::kTogether ? 1 : I::kTogether / N;
    each<N>([&](int n) { sum[n] = I::set1(0); });
    int k = 0;
    for (; k + kTogether <= K; k += kTogether) add_components<I, N, kTogether>(edge, p, k, sum);
    if constexpr (kTogether > 2) {
        for (; k + 2 <= K; k += 2) add_components<I, N, 2>(edge, p, k, sum);
    }
    for (; k < K; ++k) add_components<I, N, 1>(edge, p, k, sum);
}

// The same at E edges of one vector of symbols.
template <class I, int E>
inline void sums_at_edges(const typename I::V (&edge)[E], const Parameters<I, 1>& p, int K, typename I::V (&sum)[E]) {
    each<E>([&](int n) { sum[n] = I::set1(0); });
    for (int k = 0; k < K; ++k) {
        typename I::V m[E], v[E], w[E], out[E];
        each<E>([&](int n) { m[n] = p.m[k], v[n] = p.v[k], w[n] = p.w[k]; });
        I::template components<E>(edge, m, v, w, out);
        each<E>([&](int n) { sum[n] = I::add(sum[n], out[n]); });
    }
}

// ---- encoder --------------------------------------------------------------------------------------------------------

template <class I>
Status mixture_intervals(const MixtureView& view, const uint8_t* symbols, size_t n, uint32_t* low, uint8_t* high) {
    using V = typename I::V;
    const int shift = 8 - view.bits, step = 1 << shift;
    const V bias = I::set1(edge_bias(view.bits)), last = I::set1((1 << view.bits) - 1), zero = I::set1(0);
    Suspects<I> suspects;
    V largest = zero;
    size_t j = 0;
    for (; j + I::kWords <= n; j += I::kWords) {
        Parameters<I, 2> p;  // twice the same symbols, for both edges
        p.read(view, j, suspects, [](const void* values, int) { return I::load(values); });
        const V z = I::load_bytes(symbols + j);
        largest = I::max_u(largest, z);
        const V edge = I::add(I::sll(z, shift + 7), bias);
        V sum[2];
        sums_at<I, 2>({edge, I::add(edge, I::set1(step << 7))}, p, view.num_mixtures, sum);
        sum[0] = I::select(I::eq(z, zero), zero, sum[0]);
        sum[1] = I::select(I::eq(z, last), I::set1(kWeightSum), sum[1]);
        I::store_intervals(I::sll(z, shift), sum[0], I::sub(sum[1], sum[0]), step, low + j, high + j);
    }
    if (!I::all(I::le_u(largest, last))) return kBadSymbol;
    if (suspects.status() != kOk) return suspects.status();
    return mixture_intervals_plain(skip(view, j), symbols + j, n - j, low + j, high + j);
}

template <class I>
Status mixture_cdf(const MixtureView& view, const int32_t* edges, size_t n, uint32_t* out) {
    using V = typename I::V;
    const int shift = 8 - view.bits;
    Suspects<I> suspects;
    size_t j = 0;
    for (; j + I::kWords <= n; j += I::kWords) {
        Parameters<I, 1> p;
        p.read(view, j, suspects, [](const void* values, int) { return I::load(values); });
        uint16_t words[I::kWords];
        for (int lane = 0; lane < I::kWords; ++lane) words[lane] = static_cast<uint16_t>(edges[j + lane]);
        V sum[1];
        sums_at<I, 1>({I::add(I::sll(I::load(words), shift + 7), I::set1(edge_bias(view.bits)))}, p, view.num_mixtures,
                      sum);
        I::store(words, sum[0]);
        for (int lane = 0; lane < I::kWords; ++lane) {
            const int32_t i = edges[j + lane];
            const uint32_t inside = (uint32_t{words[lane]} << 4) + static_cast<uint32_t>(i << shift);
            out[j + lane] = i == 0 ? 0 : i == 1 << view.bits ? kProbabilityOne : inside;
        }
    }
    if (suspects.status() != kOk) return suspects.status();
    return mixture_cdf_plain(skip(view, j), edges + j, n - j, out + j);
}

// G vectors of states, lanes in order.
template <class I, int G>
uint16_t* encode_rows_of(const uint32_t* low, const uint8_t* high, size_t rows, uint64_t* states, uint16_t* words) {
    typename I::V x[G];
    each<G>([&](int g) { x[g] = I::load(states + g * I::kQuads); });
    for (size_t row = rows; row-- > 0;) {
        each<G>([&](int reversed) {
            const int g = G - 1 - reversed;
            const size_t j = (row * G + g) * I::kQuads;
            I::encode(x[g], low + j, high + j, words);
        });
    }
    each<G>([&](int g) { I::store(states + g * I::kQuads, x[g]); });
    return words;
}

// ---- decoder --------------------------------------------------------------------------------------------------------

// Refills G vectors of states in lane order. False if the words do not suffice; words past words_end may have been
// read, which the caller checks for after the row.
template <class I, int G>
inline bool refill_all(typename I::V (&x)[G], const uint16_t*& words, const uint16_t* words_end) {
    bool two = false;
    each<G>([&](int g) { two |= I::needs_two_words(x[g]); });
    if (!two) {
        each<G>([&](int g) { I::refill(x[g], words); });
        return true;
    }
    uint64_t states[I::kQuads * G];  // a symbol of probability <= 2^-16: rare
    each<G>([&](int g) { I::store(states + g * I::kQuads, x[g]); });
    for (uint64_t& state : states) {
        if (!refill(state, words, words_end)) return false;
    }
    each<G>([&](int g) { x[g] = I::load(states + g * I::kQuads); });
    return true;
}

// The mask of words with (sum << 4) + e <= slot; h = floor(slot / 16), rest = 15 - slot % 16, edge = 128 e + bias.
template <class I>
inline typename I::M reaches(typename I::V edge, typename I::V sum, typename I::V bias, typename I::V h,
                             typename I::V rest) {
    const auto q = I::srl(I::add(I::srl(I::sub(edge, bias), 7), rest), 4);
    return I::le_u_if(I::le_u(q, h), sum, I::sub(h, q));
}

// The state after a symbol; all quads: e, floor sums at its lower edge and their difference to the upper one.
template <class I>
inline typename I::V next_state(typename I::V x, typename I::V e, typename I::V low, typename I::V difference,
                                int step_size) {
    const auto freq = I::addq(I::template sllq<4>(difference), I::set1q(static_cast<uint64_t>(step_size)));
    const auto start = I::addq(I::template sllq<4>(low), e);
    const auto rest = I::subq(I::and_(x, I::set1q(kProbabilityOne - 1)), start);
    return I::addq(I::mulq(freq, I::template srlq<kProbabilityBits>(x)), rest);
}

template <class I, int N>
Status decode_binary(const MixtureView& view, uint8_t* symbols, size_t rows, uint64_t* states, const uint16_t** words,
                     const uint16_t* words_end) {
    using V = typename I::V;
    constexpr int kLanes = I::kWords * N;
    const int K = view.num_mixtures, step_size = 1 << (8 - view.bits);
    const V bias = I::set1(edge_bias(view.bits));
    const uint16_t* next_word = *words;
    Suspects<I> suspects;
    V x[4 * N];
    each<4 * N>([&](int g) { x[g] = I::load(states + g * I::kQuads); });

    Parameters<I, N> parameters[2];  // of this row and the next
    V first_sum[N];                  // at the first step's edge
    const auto prepare = [&](size_t row) {
        Parameters<I, N>& p = parameters[row % 2];
        p.read(view, row * kLanes, suspects, [](const auto* values, int n) { return I::load(values + n * I::kWords); });
        V edge[N];
        each<N>([&](int n) { edge[n] = I::add(bias, I::set1(128 << 7)); });
        sums_at<I, N>(edge, p, K, first_sum);
    };
    if (rows > 0) prepare(0);

    for (size_t row = 0; row < rows; ++row) {
        const Parameters<I, N>& p = parameters[row % 2];
        V h[N], rest[N], position[N], low[N], high[N], edge[N], sum[N];
        each<N>([&](int n) {
            V quads[4];
            each<4>([&](int i) { quads[i] = I::template srlq<4>(x[4 * n + i]); });
            h[n] = I::words_of(quads);
            rest[n] = I::sub(I::set1(15), I::and_(I::words_of(x + 4 * n), I::set1(15)));
            position[n] = bias;
            low[n] = I::set1(0);
            high[n] = I::set1(kWeightSum);
            sum[n] = first_sum[n];
        });
        for (int step = 128; step >= step_size; step >>= 1) {
            each<N>([&](int n) { edge[n] = I::add(position[n], I::set1(step << 7)); });
            if (step < 128) sums_at<I, N>(edge, p, K, sum);
            each<N>([&](int n) {
                const auto up = reaches<I>(edge[n], sum[n], bias, h[n], rest[n]);
                low[n] = I::select(up, sum[n], low[n]);
                high[n] = I::select(up, high[n], sum[n]);
                position[n] = I::select(up, edge[n], position[n]);
            });
        }
        if (row + 1 < rows) prepare(row + 1);
        each<N>([&](int n) {
            const V e = I::srl(I::sub(position[n], bias), 7);
            I::store_bytes(symbols + row * kLanes + n * I::kWords, I::srl(e, 8 - view.bits));
            V e_quads[4], low_quads[4], difference[4];
            I::quads_of(e, e_quads);
            I::quads_of(low[n], low_quads);
            I::quads_of(I::sub(high[n], low[n]), difference);
            each<4>([&](int i) {
                x[4 * n + i] = next_state<I>(x[4 * n + i], e_quads[i], low_quads[i], difference[i], step_size);
            });
        });
        if (!refill_all<I>(x, next_word, words_end) || next_word > words_end) return kTruncated;
    }
    each<4 * N>([&](int g) { I::store(states + g * I::kQuads, x[g]); });
    *words = next_word;
    return suspects.status();
}

// C at neighbouring edges of kWords symbols: of three symbols around the mean of the heaviest component. (Which edges
// these are decides nothing but time.)
template <class I>
struct Windows {
    static constexpr int kEdges = 4;
    uint16_t first[I::kWords];  // symbol of the first edge
    uint32_t c[kEdges][I::kWords];

    void make(const MixtureView& view, size_t j, Suspects<I>& suspects) {
        using V = typename I::V;
        const int num_symbols = 1 << view.bits, shift = 8 - view.bits;
        Parameters<I, 1> p;
        p.read(view, j, suspects, [](const void* values, int) { return I::load(values); });
        V weight = I::set1(0), mean = I::set1(0);
        for (int k = 0; k < view.num_mixtures; ++k) {
            mean = I::select(I::le_u(p.w[k], weight), mean, p.m[k]);
            weight = I::max_u(weight, p.w[k]);
        }
        // The symbol at the mean is floor((mean + 64 S) / (128 S)) + 2^(b-1).
        const V from_zero = I::adds_u(I::xor_(mean, I::set1(0x8000)), I::set1(64 << shift));
        const V likely = I::srl(from_zero, 7 + shift), to_start = I::set1(num_symbols / 2 + 1);  // with 2^b added
        const V last = I::set1(num_symbols > kEdges - 1 ? num_symbols - (kEdges - 1) : 0);
        const V start = I::min_u(I::sub(I::max_u(likely, to_start), to_start), last);
        I::store(first, start);
        V e[kEdges], edge[kEdges], sum[kEdges];
        each<kEdges>([&](int n) {
            e[n] = I::sll(I::min_u(I::add(start, I::set1(n)), I::set1(num_symbols)), shift);
            edge[n] = I::add(I::sll(e[n], 7), I::set1(edge_bias(view.bits)));
        });
        sums_at_edges<I, kEdges>(edge, p, view.num_mixtures, sum);
        each<kEdges>([&](int n) {
            sum[n] = I::select(I::eq(e[n], I::set1(0)), I::set1(0), sum[n]);
            sum[n] = I::select(I::eq(e[n], I::set1(256)), I::set1(kWeightSum), sum[n]);
            I::store_cdf(e[n], sum[n], c[n]);
        });
    }
};

struct Interval {
    uint32_t symbol, start, freq;
};

// The interval of one symbol that holds the slot: first among the kWords - 1 symbols around `near`, then among all.
template <class I>
__attribute__((noinline)) Interval search_symbol(const MixtureView& view, size_t j, uint32_t slot, int near) {
    using V = typename I::V;
    constexpr int kStepBits = log2_of(I::kWords);
    const int num_symbols = 1 << view.bits, shift = 8 - view.bits;
    uint16_t numbers[I::kWords], sums[I::kWords];
    for (int i = 0; i < I::kWords; ++i) numbers[i] = static_cast<uint16_t>(i);
    Parameters<I, 1> p;
    Suspects<I> suspects;  // the windows see to these
    p.read(view, j, suspects, [](const auto* value, int) { return I::set1(*value); });
    const V bias = I::set1(edge_bias(view.bits)), number = I::load(numbers);
    const V h = I::set1(static_cast<int>(slot >> 4)), rest = I::set1(15 - static_cast<int>(slot & 15));
    // How many of the edges first + (i << gap), 0 < i < count, do not exceed the slot: the first ones.
    const auto reached = [&](int first, int gap, int count) {
        const V e = I::sll(I::add(I::sll(number, gap), I::set1(first)), shift);
        const V edge = I::add(I::sll(e, 7), bias);
        V sum[1];
        sums_at<I, 1>({edge}, p, view.num_mixtures, sum);
        I::store(sums, sum[0]);
        const auto tries = I::both(I::le_u(I::set1(1), number), I::le_u(number, I::set1(count - 1)));
        return I::count(I::both(tries, reaches<I>(edge, sum[0], bias, h, rest)));
    };
    const auto cdf = [&](int i, int symbol) {
        return (uint32_t{sums[i]} << 4) + static_cast<uint32_t>(symbol << shift);
    };
    uint32_t start = 0, end = kProbabilityOne;
    int symbol = 0;
    if (num_symbols > I::kWords) {
        // Edges first .. first + kWords - 1: strictly between the outermost ones, both neighbours are known.
        int first = near - I::kWords / 2;
        first = first < 0 ? 0 : first > num_symbols - I::kWords ? num_symbols - I::kWords : first;
        const int found = reached(first, 0, I::kWords);
        if (found > 0 && found + 1 < I::kWords) {
            start = cdf(found, first + found);
            end = cdf(found + 1, first + found + 1);
            return {static_cast<uint32_t>(first + found), start, end - start};
        }
    }
    for (int left = view.bits; left > 0;) {
        const int bits = left < kStepBits ? left : kStepBits;
        left -= bits;
        const int found = reached(symbol, left, 1 << bits);
        if (found > 0) start = cdf(found, symbol + (found << left));
        if (found + 1 < 1 << bits) end = cdf(found + 1, symbol + ((found + 1) << left));
        symbol += found << left;
    }
    return {static_cast<uint32_t>(symbol), start, end - start};
}

template <class I>
Status decode_window(const MixtureView& view, uint8_t* symbols, size_t rows, int lanes, uint64_t* states,
                     const uint16_t** words, const uint16_t* words_end) {
    constexpr size_t kWords = I::kWords;
    const size_t n = rows * static_cast<size_t>(lanes);
    const uint16_t* next_word = *words;
    Suspects<I> suspects;
    Windows<I> windows[2];  // of these symbols and the next
    // Parameters of the last symbols, less than a vector, with copies of the very last.
    uint16_t weights[kMaxMixtures][kWords], inv_scales[kMaxMixtures][kWords];
    int16_t means[kMaxMixtures][kWords];
    const auto prepare = [&](size_t j) {
        Windows<I>& next = windows[j / kWords % 2];
        if (j + kWords <= n) return next.make(view, j, suspects);
        for (int k = 0; k < view.num_mixtures; ++k) {
            for (size_t i = 0; i < kWords; ++i) {
                const size_t from = k * view.stride + (j + i < n ? j + i : n - 1);
                weights[k][i] = view.weights[from];
                means[k][i] = view.means[from];
                inv_scales[k][i] = view.inv_scales[from];
            }
        }
        next.make({weights[0], means[0], inv_scales[0], kWords, view.num_mixtures, view.bits}, 0, suspects);
    };
    if (n > 0) prepare(0);

    uint64_t x[kMaxLanes];
    std::memcpy(x, states, static_cast<size_t>(lanes) * sizeof(*x));
    for (size_t j = 0; j < n; j += kWords) {
        if (j + kWords < n) prepare(j + kWords);
        const Windows<I>& window = windows[j / kWords % 2];
        const size_t count = n - j < kWords ? n - j : kWords;
        uint8_t found[kWords];  // apart from `symbols`, which could be anything's memory to a compiler
        for (size_t i = 0; i < count; ++i) {
            const size_t lane = (j + i) & static_cast<size_t>(lanes - 1);
            const uint32_t slot = static_cast<uint32_t>(x[lane]) & (kProbabilityOne - 1);
            const uint32_t* c = window.c[0] + i;  // one edge every kWords
            Interval here;
            if (slot - c[0] < c[3 * kWords] - c[0]) {
                const uint32_t above = static_cast<uint32_t>(slot >= c[kWords]) + (slot >= c[2 * kWords]);
                c += above * kWords;
                here = {window.first[i] + above, c[0], c[kWords] - c[0]};
            } else {
                here = search_symbol<I>(view, j + i, slot, window.first[i] + 1);
            }
            found[i] = static_cast<uint8_t>(here.symbol);
            x[lane] = decode_symbol(x[lane], here.start, here.freq);
            if (x[lane] < kStateLow && !refill(x[lane], next_word, words_end)) return kTruncated;
        }
        std::memcpy(symbols + j, found, count);
    }
    std::memcpy(states, x, static_cast<size_t>(lanes) * sizeof(*x));
    *words = next_word;
    return suspects.status();
}

}  // namespace
}  // namespace l2c
