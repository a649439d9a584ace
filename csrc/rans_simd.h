// The coder's kernels on vectors of 16-bit words, once for every instruction set `I` (rans_avx2.cpp, rans_avx512.cpp).
//
// `I` offers a vector V of kWords 16-bit words, or kQuads = kWords / 4 states of 64 bits, a mask M, and the operations
// used below. C(i) needs 16 bits only: sum_k floor(w sigma / 2^16) <= 65520, and C(i) = (sum << 4) + e <= slot with
// e = i S <= 255 is the same as q = ceil((e - slot % 16) / 16) <= h = floor(slot / 16) and sum <= h - q.
//
// Two ways to search, both without tables of C:
//   binary  a word is a lane; b steps. For many lanes, where throughput counts.
//   wide    a lane has kWords / L words, which try as many edges at once: with 8 lanes in AVX-512 a 4-ary search, with
//           one lane a 32-ary one. For few lanes, where the chain state -> symbol -> state counts. As few lanes mean
//           few bits, most symbols are near the mean: a window around it is tried first, and the search only starts
//           where it fails.
// In both what comes first needs no state, and is done for the next row while this row's chain waits.
//
// Everything is in an anonymous namespace: each file gets its own code (see mixture_cdf.h).

#pragma once

#include "rans_kernels.h"

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

// Refills G vectors of states in lane order, L lanes each. False if the words do not suffice; words past words_end may
// have been read, which the caller checks for after the row.
template <class I, int L, int G>
inline bool refill_all(typename I::V (&x)[G], const uint16_t*& words, const uint16_t* words_end) {
    bool two = false;
    each<G>([&](int g) { two |= I::needs_two_words(x[g]); });
    if (!two) {
        each<G>([&](int g) { I::template refill<L>(x[g], words); });
        return true;
    }
    uint64_t states[L * G];  // a symbol of probability <= 2^-16: rare
    each<G>([&](int g) { I::template store_states<L>(states + g * L, x[g]); });
    for (uint64_t& state : states) {
        if (!refill(state, words, words_end)) return false;
    }
    each<G>([&](int g) { x[g] = I::template load_states<L>(states + g * L); });
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
        if (!refill_all<I, I::kQuads>(x, next_word, words_end) || next_word > words_end) return kTruncated;
    }
    each<4 * N>([&](int g) { I::store(states + g * I::kQuads, x[g]); });
    *words = next_word;
    return suspects.status();
}

// Where one row of symbols was found: edge = 128 e + bias of the lower edge, and the sums at it and at the upper one.
template <class I, int G>
struct Found {
    typename I::V edge[G], low[G], high[G];
};

// G vectors of L lanes each; a lane has kWays = kWords / L neighbouring words, and its state in every quad of them.
template <class I, int L, int G>
struct WideSearch {
    using V = typename I::V;
    using M = typename I::M;
    static constexpr int kWays = I::kWords / L, kWayBits = log2_of(kWays);

    int K, bits;
    V bias, way;

    explicit WideSearch(const MixtureView& view) : K(view.num_mixtures), bits(view.bits) {
        uint16_t ways[I::kWords];
        for (int i = 0; i < I::kWords; ++i) ways[i] = static_cast<uint16_t>(i % kWays);
        way = I::load(ways);
        bias = I::set1(edge_bias(bits));
    }

    // The symbols of the states, from all edges. Way r of a lane tries the edge at position + r * step, r > 0 (the
    // position itself is known not to exceed the slot). The first step takes the bits that do not fill a step, so that
    // only there some ways have no edge to try.
    __attribute__((noinline)) void all(const Parameters<I, G>& p, const V (&h)[G], const V (&rest)[G],
                                       Found<I, G>& found) const {
        const int num_steps = (bits + kWayBits - 1) / kWayBits;
        const int first_bits = bits - kWayBits * (num_steps - 1);
        V position[G], low[G], high[G], edge[G], sum[G];
        each<G>([&](int g) {
            position[g] = bias;
            low[g] = I::set1(0);
            high[g] = I::set1(kWeightSum);
        });
        for (int s = 0; s < num_steps; ++s) {
            const V offset = I::sll(way, 7 + (8 - bits) + kWayBits * (num_steps - 1 - s));
            const int num_ways = s == 0 ? 1 << first_bits : kWays;
            const M tries = I::both(I::le_u(I::set1(1), way), I::le_u(way, I::set1(num_ways - 1)));
            each<G>([&](int g) { edge[g] = I::add(position[g], offset); });
            sums_at<I, G>(edge, p, K, sum);
            each<G>([&](int g) {
                const M reached = reaches<I>(edge[g], sum[g], bias, h[g], rest[g]);
                const M up = I::both(tries, reached), down = I::first_only(tries, reached);
                position[g] = I::template group_max_s<L>(I::select(up, edge[g], position[g]));
                low[g] = I::max_u(low[g], I::keep(up, sum[g]));
                high[g] = I::select(down, I::min_u(high[g], sum[g]), high[g]);
            });
        }
        each<G>([&](int g) {
            found.edge[g] = position[g];
            found.low[g] = I::template group_max_u<L>(low[g]);
            found.high[g] = I::template group_min_u<L>(high[g]);
        });
    }

    // kWays neighbouring edges around the mean of the heaviest component, of all 2^b + 1 edges, those at 0 and 2^b
    // included. (Which edges are tried decides nothing but time. With fewer edges than ways the last ones are repeated.)
    void window(const Parameters<I, G>& p, V (&edge)[G], V (&sum)[G]) const {
        const int num_symbols = 1 << bits, shift = 8 - bits;
        const int last_start = num_symbols < kWays - 1 ? 0 : num_symbols - (kWays - 1);
        const V offset = I::sll(I::min_u(way, I::set1(num_symbols)), 7 + shift);
        const V to_start = I::set1(num_symbols / 2 + kWays / 2 - 1);
        each<G>([&](int g) {
            V weight = p.w[g], mean = p.m[g];
            for (int k = 1; k < K; ++k) {
                mean = I::select(I::le_u(p.w[k * G + g], weight), mean, p.m[k * G + g]);
                weight = I::max_u(weight, p.w[k * G + g]);
            }
            // The symbol at the mean is floor((mean + 64 S) / (128 S)) + 2^(b-1).
            const V from_zero = I::adds_u(I::xor_(mean, I::set1(0x8000)), I::set1(64 << shift));
            const V likely = I::srl(from_zero, 7 + shift);  // with 2^b added
            const V start = I::min_u(I::sub(I::max_u(likely, to_start), to_start), I::set1(last_start));
            edge[g] = I::add(I::add(bias, I::sll(start, 7 + shift)), offset);
        });
        sums_at<I, G>(edge, p, K, sum);
        each<G>([&](int g) {
            sum[g] = I::select(I::eq(edge[g], bias), I::set1(0), sum[g]);
            sum[g] = I::select(I::eq(edge[g], I::add(bias, I::set1(0x8000))), I::set1(kWeightSum), sum[g]);
        });
    }
};

template <class I, int L, int G>
Status decode_wide(const MixtureView& view, uint8_t* symbols, size_t rows, uint64_t* states, const uint16_t** words,
                   const uint16_t* words_end) {
    using V = typename I::V;
    using M = typename I::M;
    using Search = WideSearch<I, L, G>;
    constexpr int kLanes = L * G;
    const Search search(view);
    const int step_size = 1 << (8 - view.bits);
    const V bias = search.bias;
    const M first_way = I::eq(search.way, I::set1(0)), last_way = I::eq(search.way, I::set1(Search::kWays - 1));
    const uint16_t* next_word = *words;
    Suspects<I> suspects;
    V x[G];
    each<G>([&](int g) { x[g] = I::template load_states<L>(states + g * L); });

    Parameters<I, G> parameters[2];  // of this row and the next
    V edge[G], sum[G];               // of the row's window
    const auto prepare = [&](size_t row) {
        Parameters<I, G>& p = parameters[row % 2];
        p.read(view, row * kLanes, suspects,
               [](const auto* values, int g) { return I::template spread<L>(values + g * L); });
        search.window(p, edge, sum);
    };
    if (rows > 0) prepare(0);

    for (size_t row = 0; row < rows; ++row) {
        V h[G], rest[G];
        Found<I, G> found;
        bool inside = true;
        each<G>([&](int g) {
            h[g] = I::spread_low_word(I::template srlq<4>(x[g]));
            rest[g] = I::sub(I::set1(15), I::and_(I::spread_low_word(x[g]), I::set1(15)));
            const M reached = reaches<I>(edge[g], sum[g], bias, h[g], rest[g]);
            inside &= !I::any(I::first_only(first_way, reached)) && !I::any(I::both(last_way, reached));
            found.edge[g] = I::template group_max_s<L>(I::select(reached, edge[g], bias));
            found.low[g] = I::template group_max_u<L>(I::keep(reached, sum[g]));
            found.high[g] = I::template group_min_u<L>(I::select(reached, I::set1(kWeightSum), sum[g]));
        });
        if (!inside) search.all(parameters[row % 2], h, rest, found);
        if (row + 1 < rows) prepare(row + 1);
        each<G>([&](int g) {
            const V word = I::set1q(0xffff);
            const V e = I::and_(I::srl(I::sub(found.edge[g], bias), 7), word);
            const V low = I::and_(found.low[g], word), high = I::and_(found.high[g], word);
            I::template store_symbols<L>(symbols + row * kLanes + g * L, I::srl(e, 8 - view.bits));
            x[g] = next_state<I>(x[g], e, low, I::subq(high, low), step_size);
        });
        if (!refill_all<I, L>(x, next_word, words_end) || next_word > words_end) return kTruncated;
    }
    each<G>([&](int g) { I::template store_states<L>(states + g * L, x[g]); });
    *words = next_word;
    return suspects.status();
}

}  // namespace
}  // namespace l2c
