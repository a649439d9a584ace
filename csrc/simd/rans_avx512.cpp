// The coder with AVX-512 (F, BW, DQ, VL).

#include "core/rans_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "simd/rans_simd.h"

namespace l2c {
namespace {

// For a mask of 8 words, the shuffle that moves the chosen ones, in order, to the top of 16 bytes.
struct PackTable {
    alignas(16) uint8_t bytes[256][16];
};
constexpr PackTable make_pack_table() {
    PackTable table{};
    for (int mask = 0; mask < 256; ++mask) {
        int to = 8;
        for (int i = 7; i >= 0; --i) {
            if ((mask >> i & 1) == 0) continue;
            --to;
            table.bytes[mask][2 * to] = static_cast<uint8_t>(2 * i);
            table.bytes[mask][2 * to + 1] = static_cast<uint8_t>(2 * i + 1);
        }
    }
    return table;
}
constexpr PackTable kPack = make_pack_table();

struct Avx512 {
    using V = __m512i;
    using M = __mmask32;
    static constexpr int kWords = 32, kQuads = 8;
    static constexpr int kTogether = 4;  // components side by side

    static V load(const void* p) { return _mm512_loadu_si512(p); }
    static void store(void* p, V a) { _mm512_storeu_si512(p, a); }
    static V set1(int a) { return _mm512_set1_epi16(static_cast<int16_t>(a)); }
    static V set1q(uint64_t a) { return _mm512_set1_epi64(static_cast<int64_t>(a)); }
    static V load_bytes(const uint8_t* p) {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static void store_bytes(uint8_t* p, V words) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi16_epi8(words));
    }

    static V or_(V a, V b) { return _mm512_or_si512(a, b); }
    static V and_(V a, V b) { return _mm512_and_si512(a, b); }
    static V xor_(V a, V b) { return _mm512_xor_si512(a, b); }
    static V add(V a, V b) { return _mm512_add_epi16(a, b); }
    static V sub(V a, V b) { return _mm512_sub_epi16(a, b); }
    static V adds_u(V a, V b) { return _mm512_adds_epu16(a, b); }
    static V min_s(V a, V b) { return _mm512_min_epi16(a, b); }
    static V min_u(V a, V b) { return _mm512_min_epu16(a, b); }
    static V max_u(V a, V b) { return _mm512_max_epu16(a, b); }
    static V sll(V a, int n) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)); }
    static V srl(V a, int n) { return _mm512_srl_epi16(a, _mm_cvtsi32_si128(n)); }
    static V addq(V a, V b) { return _mm512_add_epi64(a, b); }
    static V subq(V a, V b) { return _mm512_sub_epi64(a, b); }
    static V mulq(V a, V b) { return _mm512_mul_epu32(a, b); }
    template <int n>
    static V sllq(V a) {
        return _mm512_slli_epi64(a, n);
    }
    template <int n>
    static V srlq(V a) {
        return _mm512_srli_epi64(a, n);
    }

    static M eq(V a, V b) { return _mm512_cmpeq_epi16_mask(a, b); }
    static M le_u(V a, V b) { return _mm512_cmple_epu16_mask(a, b); }
    static M le_s(V a, V b) { return _mm512_cmple_epi16_mask(a, b); }
    static M le_u_if(M mask, V a, V b) { return _mm512_mask_cmple_epu16_mask(mask, a, b); }
    static M both(M a, M b) { return a & b; }
    static bool any(M a) { return a != 0; }
    static bool all(M a) { return a == 0xffffffff; }
    static int count(M a) { return _mm_popcnt_u32(a); }
    static V select(M mask, V yes, V no) { return _mm512_mask_mov_epi16(no, mask, yes); }

    // floor(w sigma(z) / 2^16) of J components side by side; core/mixture_cdf.h has the definition, `edge` is 64 t.
    template <int J>
    static void components(const V* edge, const V* m, const V* v, const V* w, V* out) {
        const V a = sub(load(kTailA), set1(1)), b = load(kTailB), c = load(kTailC);
        V low[J], high[J], sign[J], u[J], f[J], s[J], inner[J], tail[J];
        M inside[J];
        each<J>([&](int j) { u[j] = _mm512_subs_epi16(edge[j], m[j]); });  // d
        each<J>([&](int j) { high[j] = _mm512_mulhi_epi16(u[j], v[j]); });
        each<J>([&](int j) { low[j] = _mm512_mullo_epi16(u[j], v[j]); });
        each<J>([&](int j) { sign[j] = _mm512_srai_epi16(u[j], 15); });  // of d v too, as v > 0
        // u = z or -1-z: (high:low >> 5) ^ sign; it saturates, so T = 1, unless high ^ sign is in 0..15.
        each<J>([&](int j) { u[j] = _mm512_slli_epi16(high[j], 11); });
        each<J>([&](int j) { low[j] = _mm512_srli_epi16(low[j], 5); });
        each<J>([&](int j) { u[j] = _mm512_ternarylogic_epi64(u[j], low[j], sign[j], 0x56); });
        each<J>([&](int j) { inside[j] = _mm512_cmplt_epu16_mask(xor_(high[j], sign[j]), set1(16)); });
        each<J>([&](int j) { s[j] = _mm512_srli_epi16(u[j], 10); });  // permutexvar reads the low 5 bits
        each<J>([&](int j) { f[j] = and_(_mm512_slli_epi16(u[j], 4), set1(1023 << 4)); });
        each<J>([&](int j) { inner[j] = _mm512_permutexvar_epi16(s[j], c); });
        each<J>([&](int j) { tail[j] = _mm512_permutexvar_epi16(s[j], b); });
        each<J>([&](int j) { inner[j] = _mm512_mulhi_epu16(f[j], inner[j]); });
        each<J>([&](int j) { s[j] = _mm512_permutexvar_epi16(s[j], a); });
        each<J>([&](int j) { inner[j] = sub(tail[j], inner[j]); });
        each<J>([&](int j) { inner[j] = _mm512_mulhi_epu16(f[j], inner[j]); });
        each<J>([&](int j) { tail[j] = _mm512_maskz_sub_epi16(inside[j], s[j], inner[j]); });  // T - 1
        // sigma mod 2^16 is T for z < 0 (sign = -1), else -T = ~(T - 1): ((T - 1) ^ ~sign) - sign.
        each<J>([&](int j) { tail[j] = _mm512_ternarylogic_epi64(tail[j], sign[j], sign[j], 0xc3); });
        each<J>([&](int j) { tail[j] = sub(tail[j], sign[j]); });
        each<J>([&](int j) { out[j] = _mm512_mulhi_epu16(w[j], tail[j]); });
    }

    // C = (sum << 4) + e and freq = (difference << 4) + step of kWords symbols, packed as the encoder keeps them.
    static void store_intervals(V e, V sum, V difference, int step, uint32_t* low, uint8_t* high) {
        for (int half = 0; half < 2; ++half) {
            const auto wide = [half](V a) {
                return _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(a) : _mm512_extracti64x4_epi64(a, 1));
            };
            const V start = _mm512_add_epi32(_mm512_slli_epi32(wide(sum), 4), wide(e));
            const V freq1 = _mm512_add_epi32(_mm512_slli_epi32(wide(difference), 4), _mm512_set1_epi32(step - 1));
            _mm512_storeu_si512(low + 16 * half, or_(start, _mm512_slli_epi32(freq1, 20)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(high + 16 * half),
                             _mm512_cvtepi32_epi8(_mm512_srli_epi32(freq1, 12)));
        }
    }

    // C = (sum << 4) + e.
    static void store_cdf(V e, V sum, uint32_t* out) {
        for (int half = 0; half < 2; ++half) {
            const auto wide = [half](V a) {
                return _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(a) : _mm512_extracti64x4_epi64(a, 1));
            };
            _mm512_storeu_si512(out + 16 * half, _mm512_add_epi32(_mm512_slli_epi32(wide(sum), 4), wide(e)));
        }
    }

    // Encodes one symbol on each of 8 states; encode_symbol (core/rans_kernels.h) says why the division is exact.
    static void encode(V& x, const uint32_t* low, const uint8_t* high, uint16_t*& words) {
        const V packed = _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)));
        const V upper = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(high)));
        const V start = and_(packed, set1q(kProbabilityOne - 1));
        const V freq = addq(or_(srlq<20>(packed), sllq<12>(upper)), set1q(1));
        const V limit = sllq<kStateBits - kProbabilityBits>(freq);
        const V shifted = srlq<16>(x);
        const __mmask8 emit = _mm512_cmpge_epu64_mask(x, limit);
        if (_mm512_cmpge_epu64_mask(shifted, limit) == 0) {
            const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(kPack.bytes[emit]));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(words - 8), _mm_shuffle_epi8(_mm512_cvtepi64_epi16(x), order));
            words -= _mm_popcnt_u32(emit);
            x = _mm512_mask_mov_epi64(x, emit, shifted);
        } else {  // two words for one lane: a symbol of probability <= 2^-16
            uint64_t states[8], limits[8];
            store(states, x);
            store(limits, limit);
            for (int lane = 7; lane >= 0; --lane) {
                for (; states[lane] >= limits[lane]; states[lane] >>= 16)
                    *--words = static_cast<uint16_t>(states[lane]);
            }
            x = load(states);
        }
        const V q = _mm512_cvttpd_epu64(_mm512_div_pd(_mm512_cvtepu64_pd(x), _mm512_cvtepu64_pd(freq)));
        x = addq(addq(x, start), mulq(q, subq(set1q(kProbabilityOne), freq)));
    }

    static bool needs_two_words(V x) { return _mm512_cmplt_epu64_mask(x, set1q(1 << 16)) != 0; }

    // One word for every state below 2^32, in lane order.
    static void refill(V& x, const uint16_t*& words) {
        const __mmask8 low = _mm512_cmplt_epu64_mask(x, set1q(kStateLow));
        V word = _mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
        word = _mm512_maskz_expand_epi64(low, word);
        words += _mm_popcnt_u32(low);
        x = _mm512_mask_or_epi64(x, low, sllq<16>(x), word);
    }

    // ---- for decode_binary: words in lane order from and to quads in lane order
    static V words_of(const V* quads) {  // low 16 bits of each
        const __m256i a = _mm256_set_m128i(_mm512_cvtepi64_epi16(quads[1]), _mm512_cvtepi64_epi16(quads[0]));
        const __m256i b = _mm256_set_m128i(_mm512_cvtepi64_epi16(quads[3]), _mm512_cvtepi64_epi16(quads[2]));
        return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    }
    static void quads_of(V words, V* quads) {
        quads[0] = _mm512_cvtepu16_epi64(_mm512_castsi512_si128(words));
        quads[1] = _mm512_cvtepu16_epi64(_mm512_extracti32x4_epi32(words, 1));
        quads[2] = _mm512_cvtepu16_epi64(_mm512_extracti32x4_epi32(words, 2));
        quads[3] = _mm512_cvtepu16_epi64(_mm512_extracti32x4_epi32(words, 3));
    }
};

uint16_t* encode_rows(const uint32_t* low, const uint8_t* high, size_t rows, int lanes, uint64_t* states,
                      uint16_t* words_end) {
    switch (lanes) {
        case 8:
            return encode_rows_of<Avx512, 1>(low, high, rows, states, words_end);
        case 16:
            return encode_rows_of<Avx512, 2>(low, high, rows, states, words_end);
        case 32:
            return encode_rows_of<Avx512, 4>(low, high, rows, states, words_end);
        case 64:
            return encode_rows_of<Avx512, 8>(low, high, rows, states, words_end);
        default:
            return encode_rows_plain(low, high, rows, lanes, states, words_end);
    }
}

Status decode_mixture(const MixtureView& view, uint8_t* symbols, size_t rows, int lanes, uint64_t* states,
                      const uint16_t** words, const uint16_t* words_end) {
    switch (lanes) {
        case 32:
            return decode_binary<Avx512, 1>(view, symbols, rows, states, words, words_end);
        case 64:
            return decode_binary<Avx512, 2>(view, symbols, rows, states, words, words_end);
        default:
            return decode_window<Avx512>(view, symbols, rows, lanes, states, words, words_end);
    }
}

// table[index] for 32 indexes 0..255 from 256 words in 8 registers.
inline __m512i look_up(const __m512i* table, __m512i index) {
    const __m512i a = _mm512_permutex2var_epi16(table[0], index, table[1]);  // reads the low 6 bits
    const __m512i b = _mm512_permutex2var_epi16(table[2], index, table[3]);
    const __m512i c = _mm512_permutex2var_epi16(table[4], index, table[5]);
    const __m512i d = _mm512_permutex2var_epi16(table[6], index, table[7]);
    const __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64));
    const __mmask32 bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
    return _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(a, bit6, b), bit7, _mm512_mask_mov_epi16(c, bit6, d));
}

// finish_params_plain, 32 symbols at a time; kQuotientGuard (core/mixture_cdf.h) says why the quotients are exact.
void finish_params(const ParamsJob& job, size_t begin, size_t end) {
    const int K = job.num_mixtures;
    const size_t m = job.num_symbols;
    __m512i exp_table[8], inv_table[8];
    for (int i = 0; i < 8; ++i) {
        exp_table[i] = _mm512_loadu_si512(job.exp_table + 32 * i);
        inv_table[i] = _mm512_loadu_si512(job.inv_table + 32 * i);
    }
    const __m512i zero = _mm512_setzero_si512();
    size_t j = begin;
    for (; j + 32 <= end; j += 32) {
        __m512i e[kMaxMixtures], top = _mm512_set1_epi16(-128), largest = zero;
        for (int k = 0; k < K; ++k) {
            e[k] = _mm512_loadu_si512(job.weights + k * m + j);
            e[k] = _mm512_min_epi16(_mm512_max_epi16(e[k], _mm512_set1_epi16(-128)), _mm512_set1_epi16(127));
            top = _mm512_max_epi16(top, e[k]);
        }
        __m512i sums[2] = {zero, zero};
        for (int k = 0; k < K; ++k) {
            e[k] = look_up(exp_table, _mm512_sub_epi16(top, e[k]));
            largest = _mm512_max_epu16(largest, e[k]);
            sums[0] = _mm512_add_epi32(sums[0], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(e[k])));
            sums[1] = _mm512_add_epi32(sums[1], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(e[k], 1)));
        }
        __m512d ratios[4];
        for (int i = 0; i < 4; ++i) {
            const __m256i sum =
                i % 2 == 0 ? _mm512_castsi512_si256(sums[i / 2]) : _mm512_extracti64x4_epi64(sums[i / 2], 1);
            ratios[i] = _mm512_div_pd(_mm512_set1_pd(kWeightSum), _mm512_cvtepi32_pd(sum));
        }
        __m512i w[kMaxMixtures], rest = _mm512_set1_epi16(static_cast<int16_t>(kWeightSum));
        for (int k = 0; k < K; ++k) {
            __m256i halves[2];
            for (int half = 0; half < 2; ++half) {
                const __m512i wide = _mm512_cvtepu16_epi32(half == 0 ? _mm512_castsi512_si256(e[k])
                                                                     : _mm512_extracti64x4_epi64(e[k], 1));
                const auto quotient = [](__m256i x, __m512d ratio) {
                    const __m512d product = _mm512_mul_pd(_mm512_cvtepi32_pd(x), ratio);
                    return _mm512_cvttpd_epi32(_mm512_add_pd(product, _mm512_set1_pd(kQuotientGuard)));
                };
                const __m256i a = quotient(_mm512_castsi512_si256(wide), ratios[2 * half]);
                const __m256i b = quotient(_mm512_extracti64x4_epi64(wide, 1), ratios[2 * half + 1]);
                halves[half] = _mm512_cvtepi32_epi16(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
            }
            w[k] = _mm512_inserti64x4(_mm512_castsi256_si512(halves[0]), halves[1], 1);
            rest = _mm512_sub_epi16(rest, w[k]);
        }
        __mmask32 open = ~__mmask32{0};  // symbols whose remainder has not found its component
        for (int k = 0; k < K; ++k) {
            const __mmask32 here = _mm512_mask_cmpeq_epi16_mask(open, e[k], largest);
            open &= ~here;
            _mm512_storeu_si512(job.weights + k * m + j, _mm512_mask_add_epi16(w[k], here, w[k], rest));
            uint16_t* const v = job.inv_scales + k * m + j;
            const __m512i index =
                _mm512_min_epi16(_mm512_max_epi16(_mm512_loadu_si512(v), zero), _mm512_set1_epi16(255));
            _mm512_storeu_si512(v, look_up(inv_table, index));
        }
    }
    finish_params_plain(job, j, end);
}

void mixture_params(const ParamsJob& job) {
    run_params(job, finish_params);
}

}  // namespace

const Kernels& avx512_kernels() {
    static const Kernels kernels = {mixture_intervals<Avx512>, mixture_cdf<Avx512>, encode_rows, decode_mixture,
                                    mixture_params};
    return kernels;
}

}  // namespace l2c

#endif  // x86-64
