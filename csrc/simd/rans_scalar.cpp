// The portable path: C++17 only, no intrinsics.
//
// What costs is the number of C(i) evaluated, so decoding does not search all 2^b edges: it searches a window around
// the components' means that nearly always holds the symbol, and starts over with all edges when the search ends at an
// end of the window. Neighbouring lanes are searched together, without branches: one search is a chain of dependent
// steps.

#include "core/rans_kernels.h"

namespace l2c {
namespace {

// T(u) for u = 0..22528, from where on it is 1: one load, from a table that nearly fits in the first-level cache,
// instead of three loads and two multiplications.
constexpr uint32_t kTailEnd = 22 << 10;
static_assert(kTailA[22] == 1 && kTailB[22] == 0);

struct TailTable {
    uint16_t values[kTailEnd + 1];
    TailTable() {
        for (uint32_t u = 0; u <= kTailEnd; ++u) values[u] = static_cast<uint16_t>(logistic_tail(u));
    }
};

const uint16_t* tail_table() {
    static const TailTable table;
    return table.values;
}

// Parameters of N neighbouring symbols, widened once.
template <int N>
struct Group {
    int32_t means[kMaxMixtures][N];
    int32_t inv_scales[kMaxMixtures][N];
    uint32_t weights[kMaxMixtures][N];
    int num_mixtures;
    // Whether d must be clamped: it stays within +-57343, so d v fits in 31 bits without; and where |d| > 32767 the
    // clamp changes nothing if v >= 23, since then u >= 32767 * 23 / 32 > kTailEnd either way.
    bool needs_clamp;

    Status read(const MixtureView& view, size_t j) {
        num_mixtures = view.num_mixtures;
        uint32_t sum[N] = {}, bad_scale = 0, small_scale = 0;
        for (int k = 0; k < num_mixtures; ++k) {
            for (int n = 0; n < N; ++n) {
                const size_t at = k * view.stride + j + n;
                means[k][n] = view.means[at];
                inv_scales[k][n] = view.inv_scales[at];
                weights[k][n] = view.weights[at];
                sum[n] += weights[k][n];
                bad_scale |= static_cast<uint32_t>(inv_scales[k][n] - 1) > 32766;
                small_scale |= inv_scales[k][n] < 23;
            }
        }
        needs_clamp = small_scale != 0;
        if (bad_scale != 0) return kBadScale;
        for (uint32_t s : sum) {
            if (s != kWeightSum) return kBadWeights;
        }
        return kOk;
    }

    // sum_k floor(w sigma / 2^16) at an edge (64 t) of each symbol.
    void sums(const int32_t (&edge)[N], const uint16_t* tail, uint32_t (&sum)[N]) const {
        needs_clamp ? sums_of<true>(edge, tail, sum) : sums_of<false>(edge, tail, sum);
    }

    template <bool kClamp>
    void sums_of(const int32_t (&edge)[N], const uint16_t* tail, uint32_t (&sum)[N]) const {
        for (int n = 0; n < N; ++n) sum[n] = 0;
        for (int k = 0; k < num_mixtures; ++k) {
            for (int n = 0; n < N; ++n) {
                int32_t d = edge[n] - means[k][n];
                if constexpr (kClamp) d = clamp_int16(d);
                const int32_t product = d * inv_scales[k][n];
                const int32_t sign = product >> 31;
                const uint32_t u = static_cast<uint32_t>(product ^ sign) >> 5;  // z or -1-z, not saturated
                const uint32_t t = tail[u < kTailEnd ? u : kTailEnd];
                const uint32_t sigma = sign != 0 ? t : 65536 - t;
                sum[n] += (weights[k][n] * sigma) >> 16;
            }
        }
    }
};

// A window of e = i S for each symbol: from start[n], a power of two `size` long, all of it within 0..256. Where it
// lies affects speed only, which is why floating point is allowed here.
template <int N>
int find_window(const Group<N>& p, int32_t bias, int step_size, int (&start)[N]) {
    constexpr float kReach = 3.5f * 65536;  // half width: 3.5 logistic scales (65536 / v in Q6) beyond every mean
    float least[N], most[N];
    for (int n = 0; n < N; ++n) least[n] = 32767, most[n] = -32768;
    for (int k = 0; k < p.num_mixtures; ++k) {
        for (int n = 0; n < N; ++n) {
            const float reach = kReach / static_cast<float>(p.inv_scales[k][n]);
            const float mean = static_cast<float>(p.means[k][n]);
            least[n] = mean - reach < least[n] ? mean - reach : least[n];
            most[n] = mean + reach > most[n] ? mean + reach : most[n];
        }
    }
    float width = 0;
    for (int n = 0; n < N; ++n) {
        const float low = -24576, high = 16384;  // nothing to find beyond the outermost edges
        least[n] = least[n] < low ? low : least[n] > high ? high : least[n];
        most[n] = most[n] < low ? low : most[n] > high ? high : most[n];
        width = most[n] - least[n] > width ? most[n] - least[n] : width;
    }
    int size = 2 * step_size;
    while (size < 256 && static_cast<float>(size * 128) < width) size *= 2;
    for (int n = 0; n < N; ++n) {
        const int middle = static_cast<int>((least[n] + most[n]) * 0.5f) - bias;
        const int from = (middle >> 7) - size / 2;
        start[n] = (from < 0 ? 0 : from > 256 - size ? 256 - size : from) & -step_size;
    }
    return size;
}

// Narrows [e, e + size) of each symbol to one step, given that slot lies in it. Ends that were not evaluated keep their
// sums.
template <int N>
void search(const Group<N>& p, const uint16_t* tail, int32_t bias, int size, int step_size, const uint32_t (&slot)[N],
            int (&e)[N], uint32_t (&low)[N], uint32_t (&high)[N]) {
    for (int step = size / 2; step >= step_size; step /= 2) {
        int32_t edge[N];
        uint32_t sum[N];
        for (int n = 0; n < N; ++n) edge[n] = (e[n] + step) * 128 + bias;
        p.sums(edge, tail, sum);
        for (int n = 0; n < N; ++n) {
            // All ones where the symbol is at or above the edge; masks, because compilers make branches of conditions.
            const uint32_t reached = (sum[n] << 4) + static_cast<uint32_t>(e[n] + step);
            const uint32_t up = 0u - static_cast<uint32_t>(reached <= slot[n]);
            low[n] ^= (low[n] ^ sum[n]) & up;
            high[n] ^= (high[n] ^ sum[n]) & ~up;
            e[n] += step & static_cast<int>(up);
        }
    }
}

constexpr uint32_t kUnknown = 0xffffffff;

// One symbol again, from all edges.
template <int N>
void search_all(const Group<N>& p, int n, const uint16_t* tail, int32_t bias, int step_size, uint32_t slot, int& e,
                uint32_t& low, uint32_t& high) {
    Group<1> single;
    single.num_mixtures = p.num_mixtures;
    single.needs_clamp = p.needs_clamp;
    for (int k = 0; k < p.num_mixtures; ++k) {
        single.means[k][0] = p.means[k][n];
        single.inv_scales[k][0] = p.inv_scales[k][n];
        single.weights[k][0] = p.weights[k][n];
    }
    int position[1] = {0};
    uint32_t low_sum[1] = {0}, high_sum[1] = {kWeightSum};
    search<1>(single, tail, bias, 256, step_size, {slot}, position, low_sum, high_sum);
    e = position[0], low = low_sum[0], high = high_sum[0];
}

// Decodes symbols j..j+N-1 of the view on states[0..N-1]; the caller refills.
template <int N>
Status decode_group(const MixtureView& view, size_t j, const uint16_t* tail, uint8_t* symbols, uint64_t* states) {
    const int step_size = 1 << (8 - view.bits);
    const int32_t bias = -64 * (step_size + 256);
    Group<N> p;
    const Status status = p.read(view, j);
    if (status != kOk) return status;

    int e[N];
    const int size = find_window(p, bias, step_size, e);
    uint32_t slot[N], low[N], high[N];
    for (int n = 0; n < N; ++n) {
        slot[n] = static_cast<uint32_t>(states[n]) & (kProbabilityOne - 1);
        low[n] = e[n] == 0 ? 0 : kUnknown;
        high[n] = e[n] + size == 256 ? kWeightSum : kUnknown;
    }
    search(p, tail, bias, size, step_size, slot, e, low, high);
    for (int n = 0; n < N; ++n) {
        // At an end of the window: the symbol can lie outside, and the end's sum is wanted anyway.
        if (low[n] == kUnknown || high[n] == kUnknown) {
            search_all(p, n, tail, bias, step_size, slot[n], e[n], low[n], high[n]);
        }
        symbols[j + n] = static_cast<uint8_t>(e[n] >> (8 - view.bits));
        states[n] = decode_symbol(states[n], (low[n] << 4) + static_cast<uint32_t>(e[n]),
                                  ((high[n] - low[n]) << 4) + static_cast<uint32_t>(step_size));
    }
    return kOk;
}

template <int N>
Status decode_rows(const MixtureView& view, uint8_t* symbols, size_t rows, int lanes, uint64_t* states,
                   const uint16_t** words, const uint16_t* words_end) {
    const uint16_t* const tail = tail_table();
    const uint16_t* next = *words;
    for (size_t row = 0; row < rows; ++row) {
        for (int lane = 0; lane < lanes; lane += N) {
            const Status status = decode_group<N>(view, row * lanes + lane, tail, symbols, states + lane);
            if (status != kOk) return status;
            for (int n = 0; n < N; ++n) {
                if (!refill(states[lane + n], next, words_end)) return kTruncated;
            }
        }
    }
    *words = next;
    return kOk;
}

Status decode_mixture(const MixtureView& view, uint8_t* symbols, size_t rows, int lanes, uint64_t* states,
                      const uint16_t** words, const uint16_t* words_end) {
    switch (lanes) {
        case 1:
            return decode_rows<1>(view, symbols, rows, lanes, states, words, words_end);
        case 2:
            return decode_rows<2>(view, symbols, rows, lanes, states, words, words_end);
        default:
            return decode_rows<4>(view, symbols, rows, lanes, states, words, words_end);
    }
}

Status mixture_intervals(const MixtureView& view, const uint8_t* symbols, size_t n, uint32_t* low, uint8_t* high) {
    constexpr int N = 4;
    const uint16_t* const tail = tail_table();
    const int shift = 8 - view.bits, step_size = 1 << shift, last = (1 << view.bits) - 1;
    const int32_t bias = -64 * (step_size + 256);
    size_t j = 0;
    for (; j + N <= n; j += N) {
        Group<N> p;
        const Status status = p.read(view, j);
        if (status != kOk) return status;
        int32_t edge[N], edge2[N];
        for (int i = 0; i < N; ++i) {
            if (symbols[j + i] > last) return kBadSymbol;
            edge[i] = (symbols[j + i] << (shift + 7)) + bias;
            edge2[i] = edge[i] + (step_size << 7);
        }
        uint32_t sum[N], sum2[N];
        p.sums(edge, tail, sum);
        p.sums(edge2, tail, sum2);
        for (int i = 0; i < N; ++i) {
            const int symbol = symbols[j + i];
            const uint32_t from = symbol == 0 ? 0 : sum[i], to = symbol == last ? kWeightSum : sum2[i];
            const uint32_t freq = ((to - from) << 4) + static_cast<uint32_t>(step_size);
            low[j + i] = pack_low((from << 4) + static_cast<uint32_t>(symbol << shift), freq);
            high[j + i] = pack_high(freq);
        }
    }
    return mixture_intervals_plain(skip(view, j), symbols + j, n - j, low + j, high + j);
}

void mixture_params(const ParamsJob& job) {
    run_params(job, finish_params_plain);
}

}  // namespace

const Kernels& scalar_kernels() {
    static const Kernels kernels = {mixture_intervals, mixture_cdf_plain, encode_rows_plain, decode_mixture,
                                    mixture_params};
    return kernels;
}

}  // namespace l2c
