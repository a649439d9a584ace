// The coder with AVX2.

#include "core/rans_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "simd/rans_simd.h"

namespace l2c {
namespace {

// Byte shuffles for 4 words, indexed by a mask of 4 quads.
struct WordTables {
    alignas(8) uint8_t pack[16][8];    // chosen words, in order, to the top of 8 bytes
    alignas(8) uint8_t expand[16][8];  // the next word of the stream to every chosen quad
};
constexpr WordTables make_word_tables() {
    WordTables tables{};
    for (int mask = 0; mask < 16; ++mask) {
        int to = 4;
        for (int i = 3; i >= 0; --i) {
            if ((mask >> i & 1) == 0) continue;
            --to;
            tables.pack[mask][2 * to] = static_cast<uint8_t>(2 * i);
            tables.pack[mask][2 * to + 1] = static_cast<uint8_t>(2 * i + 1);
        }
        int word = 0;
        for (int i = 0; i < 4; ++i) {
            const bool chosen = mask >> i & 1;
            tables.expand[mask][2 * i] = static_cast<uint8_t>(chosen ? 2 * word : 0x80);
            tables.expand[mask][2 * i + 1] = static_cast<uint8_t>(chosen ? 2 * word + 1 : 0x80);
            word += chosen;
        }
    }
    return tables;
}
constexpr WordTables kWordTables = make_word_tables();

// The tail's coefficients as 16-byte tables for byte shuffles: segments 0..7 and 8..15 as words, 16..31 as bytes.
struct TailTables {
    alignas(16) uint8_t words[3][2][16];
    alignas(16) uint8_t bytes[2][16];
};
constexpr TailTables make_tail_tables() {
    TailTables tables{};
    for (int s = 0; s < 32; ++s) {
        const uint16_t values[3] = {kTailA[s], kTailB[s], kTailC[s]};
        for (int i = 0; i < 3; ++i) {
            if (s < 16) {
                tables.words[i][s / 8][s % 8 * 2] = static_cast<uint8_t>(values[i]);
                tables.words[i][s / 8][s % 8 * 2 + 1] = static_cast<uint8_t>(values[i] >> 8);
            } else if (i < 2) {
                tables.bytes[i][s - 16] = static_cast<uint8_t>(values[i]);
            }
        }
    }
    return tables;
}
constexpr TailTables kTail = make_tail_tables();
constexpr bool upper_segments_are_small() {
    for (int s = 16; s < 32; ++s) {
        if (kTailA[s] > 255 || kTailB[s] > 255 || kTailC[s] != 0) return false;
    }
    return true;
}
static_assert(upper_segments_are_small());

struct Avx2 {
    using V = __m256i;
    using M = __m256i;
    static constexpr int kWords = 16, kQuads = 4;
    static constexpr int kTogether = 2;  // components side by side

    static V load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static void store(void* p, V a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
    static V set1(int a) { return _mm256_set1_epi16(static_cast<int16_t>(a)); }
    static V set1q(uint64_t a) { return _mm256_set1_epi64x(static_cast<int64_t>(a)); }
    static V load_bytes(const uint8_t* p) {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static void store_bytes(uint8_t* p, V words) {
        const V packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
    }

    static V or_(V a, V b) { return _mm256_or_si256(a, b); }
    static V and_(V a, V b) { return _mm256_and_si256(a, b); }
    static V xor_(V a, V b) { return _mm256_xor_si256(a, b); }
    static V add(V a, V b) { return _mm256_add_epi16(a, b); }
    static V sub(V a, V b) { return _mm256_sub_epi16(a, b); }
    static V adds_u(V a, V b) { return _mm256_adds_epu16(a, b); }
    static V min_s(V a, V b) { return _mm256_min_epi16(a, b); }
    static V min_u(V a, V b) { return _mm256_min_epu16(a, b); }
    static V max_u(V a, V b) { return _mm256_max_epu16(a, b); }
    static V sll(V a, int n) { return _mm256_sll_epi16(a, _mm_cvtsi32_si128(n)); }
    static V srl(V a, int n) { return _mm256_srl_epi16(a, _mm_cvtsi32_si128(n)); }
    static V addq(V a, V b) { return _mm256_add_epi64(a, b); }
    static V subq(V a, V b) { return _mm256_sub_epi64(a, b); }
    static V mulq(V a, V b) { return _mm256_mul_epu32(a, b); }
    template <int n>
    static V sllq(V a) {
        return _mm256_slli_epi64(a, n);
    }
    template <int n>
    static V srlq(V a) {
        return _mm256_srli_epi64(a, n);
    }

    static M eq(V a, V b) { return _mm256_cmpeq_epi16(a, b); }
    static M le_u(V a, V b) { return eq(min_u(a, b), a); }
    static M le_s(V a, V b) { return eq(min_s(a, b), a); }
    static M le_u_if(M mask, V a, V b) { return and_(mask, le_u(a, b)); }
    static M both(M a, M b) { return and_(a, b); }
    static bool any(M a) { return _mm256_movemask_epi8(a) != 0; }
    static bool all(M a) { return _mm256_movemask_epi8(a) == -1; }
    static int count(M a) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_epi8(a))) / 2; }
    static V select(M mask, V yes, V no) { return _mm256_blendv_epi8(no, yes, mask); }

    static V table(const uint8_t* bytes) {
        return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    }

    // floor(w sigma(z) / 2^16) of J components; core/mixture_cdf.h has the definition, `edge` is 64 t.
    template <int J>
    static void components(const V* edge, const V* m, const V* v, const V* w, V* out) {
        each<J>([&](int j) { out[j] = component(edge[j], m[j], v[j], w[j]); });
    }

    static V component(V edge, V m, V v, V w) {
        const V d = _mm256_subs_epi16(edge, m);
        const V low = _mm256_mullo_epi16(d, v), high = _mm256_mulhi_epi16(d, v);
        const V sign = _mm256_srai_epi16(d, 15);  // of d v too, as v > 0
        // u = z or -1-z: (high:low >> 5) ^ sign; it saturates, so T = 1, unless high ^ sign is in 0..15.
        const V u = xor_(or_(_mm256_slli_epi16(high, 11), _mm256_srli_epi16(low, 5)), sign);
        const V outside = _mm256_cmpgt_epi16(xor_(high, sign), set1(15));
        const V s = and_(_mm256_srli_epi16(u, 10), set1(31)), f = and_(_mm256_slli_epi16(u, 4), set1(1023 << 4));
        // A byte shuffle gives 0 where bit 7 of the index is set, so the tables' results can be joined by `or`: an
        // index in a table's range becomes 0x70..0x7f, any other one 0x80 or more.
        const V pair = or_(_mm256_slli_epi16(s, 1), _mm256_slli_epi16(s, 9));  // bytes 2s, 2s
        const V first = add(pair, set1(0x7170));                               // for s < 8
        const V second = add(xor_(pair, set1(0x1010)), set1(0x7170));          // for s = 8..15
        const V upper = add(xor_(s, set1(16)), set1(0x8070));                  // for s >= 16, low byte only
        const auto words = [&](int i) {
            return or_(_mm256_shuffle_epi8(table(kTail.words[i][0]), first),
                       _mm256_shuffle_epi8(table(kTail.words[i][1]), second));
        };
        const V a = or_(words(0), _mm256_shuffle_epi8(table(kTail.bytes[0]), upper));
        const V b = or_(words(1), _mm256_shuffle_epi8(table(kTail.bytes[1]), upper));
        const V inner = sub(b, _mm256_mulhi_epu16(f, words(2)));
        const V tail = max_u(_mm256_andnot_si256(outside, sub(a, _mm256_mulhi_epu16(f, inner))), set1(1));
        // sigma mod 2^16 is T for z < 0 (sign = -1), else -T.
        return _mm256_mulhi_epu16(w, _mm256_sign_epi16(tail, or_(xor_(sign, set1(-1)), set1(1))));
    }

    // C = (sum << 4) + e and freq = (difference << 4) + step of kWords symbols, packed as the encoder keeps them.
    static void store_intervals(V e, V sum, V difference, int step, uint32_t* low, uint8_t* high) {
        for (int half = 0; half < 2; ++half) {
            const auto wide = [half](V a) {
                return _mm256_cvtepu16_epi32(half == 0 ? _mm256_castsi256_si128(a) : _mm256_extracti128_si256(a, 1));
            };
            const V start = _mm256_add_epi32(_mm256_slli_epi32(wide(sum), 4), wide(e));
            const V freq1 = _mm256_add_epi32(_mm256_slli_epi32(wide(difference), 4), _mm256_set1_epi32(step - 1));
            store(low + 8 * half, or_(start, _mm256_slli_epi32(freq1, 20)));
            V bytes = _mm256_srli_epi32(freq1, 12);
            bytes = _mm256_packus_epi16(_mm256_packus_epi32(bytes, bytes), bytes);
            bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(high + 8 * half), _mm256_castsi256_si128(bytes));
        }
    }

    // C = (sum << 4) + e.
    static void store_cdf(V e, V sum, uint32_t* out) {
        for (int half = 0; half < 2; ++half) {
            const auto wide = [half](V a) {
                return _mm256_cvtepu16_epi32(half == 0 ? _mm256_castsi256_si128(a) : _mm256_extracti128_si256(a, 1));
            };
            store(out + 8 * half, _mm256_add_epi32(_mm256_slli_epi32(wide(sum), 4), wide(e)));
        }
    }

    // 0 <= x < 2^52 as double, exactly.
    static __m256d to_double(V x) {
        const __m256d magic = _mm256_set1_pd(4503599627370496.0);  // 2^52: the integer sits in the mantissa
        return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(x), magic), magic);
    }
    static int quad_mask(V a) { return _mm256_movemask_pd(_mm256_castsi256_pd(a)); }

    // Encodes one symbol on each of 4 states; encode_symbol (core/rans_kernels.h) says why the division is exact.
    static void encode(V& x, const uint32_t* low, const uint8_t* high, uint16_t*& words) {
        int32_t high_bytes;
        std::memcpy(&high_bytes, high, 4);
        const V packed = _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
        const V upper = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(high_bytes));
        const V start = and_(packed, set1q(kProbabilityOne - 1));
        const V freq = addq(or_(srlq<20>(packed), sllq<12>(upper)), set1q(1));
        const V limit = sllq<kStateBits - kProbabilityBits>(freq);
        const V shifted = srlq<16>(x);
        const V keep_state = _mm256_cmpgt_epi64(limit, x);
        if (quad_mask(_mm256_cmpgt_epi64(limit, shifted)) == 15) {
            const unsigned emit = ~static_cast<unsigned>(quad_mask(keep_state)) & 15;
            const V low_words = _mm256_shuffle_epi8(
                x,
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)));
            const __m128i four =
                _mm_unpacklo_epi32(_mm256_castsi256_si128(low_words), _mm256_extracti128_si256(low_words, 1));
            const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kWordTables.pack[emit]));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(words - 4), _mm_shuffle_epi8(four, order));
            words -= __builtin_popcount(emit);
            x = _mm256_blendv_epi8(shifted, x, keep_state);
        } else {  // two words for one lane: a symbol of probability <= 2^-16
            uint64_t states[4], limits[4];
            store(states, x);
            store(limits, limit);
            for (int lane = 3; lane >= 0; --lane) {
                for (; states[lane] >= limits[lane]; states[lane] >>= 16)
                    *--words = static_cast<uint16_t>(states[lane]);
            }
            x = load(states);
        }
        const V q = _mm256_cvtepi32_epi64(_mm256_cvttpd_epi32(_mm256_div_pd(to_double(x), to_double(freq))));  // < 2^28
        x = addq(addq(x, start), mulq(q, subq(set1q(kProbabilityOne), freq)));
    }

    // States are below 2^63, so that signed comparison serves.
    static bool needs_two_words(V x) { return quad_mask(_mm256_cmpgt_epi64(set1q(1 << 16), x)) != 0; }

    // One word for every state below 2^32, in lane order.
    static void refill(V& x, const uint16_t*& words) {
        const V low = _mm256_cmpgt_epi64(set1q(kStateLow), x);
        const int mask = quad_mask(low);
        const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kWordTables.expand[mask]));
        const __m128i next = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(words)), order);
        words += __builtin_popcount(static_cast<unsigned>(mask));
        x = _mm256_blendv_epi8(x, or_(sllq<16>(x), _mm256_cvtepu16_epi64(next)), low);
    }

    // ---- for decode_binary: words in lane order from and to quads in lane order
    static V words_of(const V* quads) {  // low 16 bits of each
        V a = _mm256_blend_epi16(quads[0], sllq<16>(quads[1]), 0x22);
        a = _mm256_blend_epi16(a, sllq<32>(quads[2]), 0x44);
        a = _mm256_blend_epi16(a, sllq<48>(quads[3]), 0x88);  // word 4 l + p is lane 4 p + l
        a = _mm256_shuffle_epi8(
            a, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)));
        return _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
    static void quads_of(V words, V* quads) {
        const __m128i a = _mm256_castsi256_si128(words), b = _mm256_extracti128_si256(words, 1);
        quads[0] = _mm256_cvtepu16_epi64(a);
        quads[1] = _mm256_cvtepu16_epi64(_mm_srli_si128(a, 8));
        quads[2] = _mm256_cvtepu16_epi64(b);
        quads[3] = _mm256_cvtepu16_epi64(_mm_srli_si128(b, 8));
    }
};

uint16_t* encode_rows(const uint32_t* low, const uint8_t* high, size_t rows, int lanes, uint64_t* states,
                      uint16_t* words_end) {
    switch (lanes) {
        case 4:
            return encode_rows_of<Avx2, 1>(low, high, rows, states, words_end);
        case 8:
            return encode_rows_of<Avx2, 2>(low, high, rows, states, words_end);
        case 16:
            return encode_rows_of<Avx2, 4>(low, high, rows, states, words_end);
        case 32:
            return encode_rows_of<Avx2, 8>(low, high, rows, states, words_end);
        case 64:
            return encode_rows_of<Avx2, 16>(low, high, rows, states, words_end);
        default:
            return encode_rows_plain(low, high, rows, lanes, states, words_end);
    }
}

Status decode_mixture(const MixtureView& view, uint8_t* symbols, size_t rows, int lanes, uint64_t* states,
                      const uint16_t** words, const uint16_t* words_end) {
    switch (lanes) {
        case 32:
            return decode_binary<Avx2, 2>(view, symbols, rows, states, words, words_end);
        case 64:
            return decode_binary<Avx2, 4>(view, symbols, rows, states, words, words_end);
        default:
            return decode_window<Avx2>(view, symbols, rows, lanes, states, words, words_end);
    }
}

void mixture_params(const ParamsJob& job) {
    run_params(job, finish_params_plain);
}

}  // namespace

const Kernels& avx2_kernels() {
    static const Kernels kernels = {mixture_intervals<Avx2>, mixture_cdf<Avx2>, encode_rows, decode_mixture,
                                    mixture_params};
    return kernels;
}

}  // namespace l2c

#endif  // x86-64
