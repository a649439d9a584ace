// The coder with NEON, which every ARM64 has.

#include "core/rans_kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#include "simd/rans_simd.h"

namespace l2c {
namespace {

// The tail's coefficients as byte tables for `tbl`, which gives 0 where an index is past the end: of a and b segments
// 0..23, as T = 1 from 22 on whatever they are, and of c 0..15. b is kept less 4096, so that it and all that is
// subtracted from it are int16; with f = 16 g that is made up for exactly by (f 4096) >> 16 = g.
constexpr int kShiftB = 4096, kSegmentsAB = 24, kSegmentsC = 16;
struct TailTables {
    int16_t a[kSegmentsAB], b[kSegmentsAB], c[kSegmentsC];
};
constexpr TailTables make_tail_tables() {
    TailTables tables{};
    for (int s = 0; s < kSegmentsAB; ++s) {
        tables.a[s] = static_cast<int16_t>(kTailA[s]);
        tables.b[s] = static_cast<int16_t>(kTailB[s] - kShiftB);
    }
    for (int s = 0; s < kSegmentsC; ++s) tables.c[s] = static_cast<int16_t>(kTailC[s]);
    return tables;
}
constexpr TailTables kTail = make_tail_tables();
constexpr bool tables_suffice() {
    for (int s = 0; s < kTailSegments; ++s) {
        if (kTailA[s] > 32767 || kTailB[s] - kShiftB > 32767 || kTailC[s] > 32767) return false;
        if (s >= kSegmentsAB - 2 && (kTailA[s] != 1 || kTailB[s] != 0)) return false;
        if (s >= kSegmentsC && kTailC[s] != 0) return false;
    }
    return true;
}
static_assert(tables_suffice());

struct Neon {
    using V = uint16x8_t;
    using M = uint16x8_t;
    static constexpr int kWords = 8, kQuads = 2;
    static constexpr int kTogether = 2;  // components side by side

    static V load(const void* p) {
        V a;
        std::memcpy(&a, p, sizeof(a));
        return a;
    }
    static void store(void* p, V a) { std::memcpy(p, &a, sizeof(a)); }
    static V set1(int a) { return vdupq_n_u16(static_cast<uint16_t>(a)); }
    static V set1q(uint64_t a) { return of_quads(vdupq_n_u64(a)); }
    static V load_bytes(const uint8_t* p) { return vmovl_u8(vld1_u8(p)); }
    static void store_bytes(uint8_t* p, V words) { vst1_u8(p, vmovn_u16(words)); }

    static int16x8_t is(V a) { return vreinterpretq_s16_u16(a); }
    static V us(int16x8_t a) { return vreinterpretq_u16_s16(a); }
    static uint64x2_t quads(V a) { return vreinterpretq_u64_u16(a); }
    static V of_quads(uint64x2_t a) { return vreinterpretq_u16_u64(a); }

    static V or_(V a, V b) { return vorrq_u16(a, b); }
    static V and_(V a, V b) { return vandq_u16(a, b); }
    static V xor_(V a, V b) { return veorq_u16(a, b); }
    static V add(V a, V b) { return vaddq_u16(a, b); }
    static V sub(V a, V b) { return vsubq_u16(a, b); }
    static V adds_u(V a, V b) { return vqaddq_u16(a, b); }
    static V min_s(V a, V b) { return us(vminq_s16(is(a), is(b))); }
    static V min_u(V a, V b) { return vminq_u16(a, b); }
    static V max_u(V a, V b) { return vmaxq_u16(a, b); }
    static V sll(V a, int n) { return vshlq_u16(a, vdupq_n_s16(static_cast<int16_t>(n))); }
    static V srl(V a, int n) { return vshlq_u16(a, vdupq_n_s16(static_cast<int16_t>(-n))); }
    static V addq(V a, V b) { return of_quads(vaddq_u64(quads(a), quads(b))); }
    static V subq(V a, V b) { return of_quads(vsubq_u64(quads(a), quads(b))); }
    static V mulq(V a, V b) { return of_quads(vmull_u32(vmovn_u64(quads(a)), vmovn_u64(quads(b)))); }
    template <int n>
    static V sllq(V a) {
        return of_quads(vshlq_n_u64(quads(a), n));
    }
    template <int n>
    static V srlq(V a) {
        return of_quads(vshrq_n_u64(quads(a), n));
    }

    static M eq(V a, V b) { return vceqq_u16(a, b); }
    static M le_u(V a, V b) { return vcleq_u16(a, b); }
    static M le_s(V a, V b) { return vcleq_s16(is(a), is(b)); }
    static M le_u_if(M mask, V a, V b) { return and_(mask, le_u(a, b)); }
    static M both(M a, M b) { return and_(a, b); }
    static bool any(M a) { return vmaxvq_u16(a) != 0; }
    static bool all(M a) { return vminvq_u16(a) != 0; }
    static int count(M a) { return vaddvq_u16(vshrq_n_u16(a, 15)); }
    static V select(M mask, V yes, V no) { return vbslq_u16(mask, yes, no); }

    // floor(w sigma(z) / 2^16) of J components; core/mixture_cdf.h has the definition, `edge` is 64 t.
    template <int J>
    static void components(const V* edge, const V* m, const V* v, const V* w, V* out) {
        each<J>([&](int j) { out[j] = component(edge[j], m[j], v[j], w[j]); });
    }

    template <int N>
    static int16x8_t look_up(const int16_t* table, uint8x16_t index) {
        if constexpr (N == 3) {
            const uint8x16x3_t bytes = {load_table(table), load_table(table + 8), load_table(table + 16)};
            return vreinterpretq_s16_u8(vqtbl3q_u8(bytes, index));
        } else {
            const uint8x16x2_t bytes = {load_table(table), load_table(table + 8)};
            return vreinterpretq_s16_u8(vqtbl2q_u8(bytes, index));
        }
    }
    static uint8x16_t load_table(const int16_t* table) { return vreinterpretq_u8_s16(vld1q_s16(table)); }

    static V component(V edge, V m, V v, V w) {
        const int16x8_t d = vqsubq_s16(is(edge), is(m));
        const int32x4_t low = vmull_s16(vget_low_s16(d), vget_low_s16(is(v))), high = vmull_high_s16(d, is(v));
        const int16x8_t z = vqshrn_high_n_s32(vqshrn_n_s32(low, 5), high, 5);
        const int16x8_t sign = vshrq_n_s16(z, 15);
        const V u = us(veorq_s16(z, sign));  // z or -1-z
        // Bytes 2s and 2s + 1 of a table, s = u >> 10.
        const uint8x16_t index = vreinterpretq_u8_u16(vmlaq_n_u16(set1(0x0100), vshrq_n_u16(u, 10), 0x0202));
        const int16x8_t g = is(and_(u, set1(1023))), half_f = vshlq_n_s16(g, 3);
        // (f x) >> 16 is the high half of 2 (f / 2) x.
        const int16x8_t inner = vsubq_s16(look_up<3>(kTail.b, index), vqdmulhq_s16(half_f, look_up<2>(kTail.c, index)));
        int16x8_t tail = vsubq_s16(vsubq_s16(look_up<3>(kTail.a, index), g), vqdmulhq_s16(half_f, inner));
        tail = vmaxq_s16(tail, vdupq_n_s16(1));  // past the tables it is -g
        // sigma mod 2^16 is T for z < 0 (sign = -1), else -T.
        const V sigma = us(vsubq_s16(sign, veorq_s16(tail, sign)));
        const uint32x4_t low_product = vmull_u16(vget_low_u16(w), vget_low_u16(sigma));
        const uint32x4_t high_product = vmull_high_u16(w, sigma);
        return vuzp2q_u16(vreinterpretq_u16_u32(low_product), vreinterpretq_u16_u32(high_product));
    }

    // C = (sum << 4) + e and freq = (difference << 4) + step of kWords symbols, packed as the encoder keeps them.
    static void store_intervals(V e, V sum, V difference, int step, uint32_t* low, uint8_t* high) {
        const uint32x4_t less_one = vdupq_n_u32(static_cast<uint32_t>(step - 1));
        const uint32x4_t freq1[2] = {vaddq_u32(vshll_n_u16(vget_low_u16(difference), 4), less_one),
                                     vaddq_u32(vshll_high_n_u16(difference, 4), less_one)};
        const uint32x4_t start[2] = {vaddw_u16(vshll_n_u16(vget_low_u16(sum), 4), vget_low_u16(e)),
                                     vaddw_high_u16(vshll_high_n_u16(sum, 4), e)};
        vst1q_u32(low, vsliq_n_u32(start[0], freq1[0], 20));
        vst1q_u32(low + 4, vsliq_n_u32(start[1], freq1[1], 20));
        vst1_u8(high, vmovn_u16(vshrn_high_n_u32(vshrn_n_u32(freq1[0], 12), freq1[1], 12)));
    }

    // C = (sum << 4) + e.
    static void store_cdf(V e, V sum, uint32_t* out) {
        vst1q_u32(out, vaddw_u16(vshll_n_u16(vget_low_u16(sum), 4), vget_low_u16(e)));
        vst1q_u32(out + 4, vaddw_high_u16(vshll_high_n_u16(sum, 4), e));
    }

    // 1 in the low and in the high half for each of two masks of quads.
    static uint64_t two_bits(uint64x2_t mask) {
        return vget_lane_u64(vreinterpret_u64_u32(vmovn_u64(vshrq_n_u64(mask, 63))), 0);
    }

    // Encodes one symbol on each of 2 states; encode_symbol (core/rans_kernels.h) says why the division is exact.
    static void encode(V& state, const uint32_t* low, const uint8_t* high, uint16_t*& words) {
        uint64x2_t x = quads(state);
        const uint32x2_t packed = vld1_u32(low);
        const uint32x2_t upper = {high[0], high[1]};
        const uint32x2_t freq1 = vsli_n_u32(vshr_n_u32(packed, 20), upper, 12);
        const uint64x2_t start = vmovl_u32(vand_u32(packed, vdup_n_u32(kProbabilityOne - 1)));
        const uint64x2_t freq = vmovl_u32(vadd_u32(freq1, vdup_n_u32(1)));
        const uint64x2_t limit = vshlq_n_u64(freq, kStateBits - kProbabilityBits);
        const uint64x2_t emit = vcgeq_u64(x, limit), shifted = vshrq_n_u64(x, 16);
        if (two_bits(vcgeq_u64(shifted, limit)) == 0) {
            const uint64_t bits = two_bits(emit);
            vst1q_lane_u16(words - 1, state, 4);  // kept where the word counts
            words -= bits >> 32;
            vst1q_lane_u16(words - 1, state, 0);
            words -= bits & 1;
            x = vbslq_u64(emit, shifted, x);
        } else {  // two words for one lane: a symbol of probability <= 2^-16
            uint64_t states[2], limits[2];
            vst1q_u64(states, x);
            vst1q_u64(limits, limit);
            for (int lane = 1; lane >= 0; --lane) {
                for (; states[lane] >= limits[lane]; states[lane] >>= 16)
                    *--words = static_cast<uint16_t>(states[lane]);
            }
            x = vld1q_u64(states);
        }
        const uint64x2_t q = vcvtq_u64_f64(vdivq_f64(vcvtq_f64_u64(x), vcvtq_f64_u64(freq)));  // < 2^28
        const uint32x2_t rest = vmovn_u64(vsubq_u64(vdupq_n_u64(kProbabilityOne), freq));
        state = of_quads(vmlal_u32(vaddq_u64(x, start), vmovn_u64(q), rest));
    }

    static bool needs_two_words(V x) { return two_bits(vcltq_u64(quads(x), vdupq_n_u64(1 << 16))) != 0; }

    // One word for every state below 2^32, in lane order.
    static void refill(V& x, const uint16_t*& words) {
        const uint64x2_t low = vcltq_u64(quads(x), vdupq_n_u64(kStateLow));
        const uint64_t bits = two_bits(low);
        V next = vld1q_lane_u16(words, set1(0), 0);
        words += bits & 1;
        next = vld1q_lane_u16(words, next, 4);
        words += bits >> 32;
        x = select(vreinterpretq_u16_u64(low), or_(sllq<16>(x), next), x);
    }

    // ---- for decode_binary: words in lane order from and to quads in lane order
    static V words_of(const V* q) {  // low 16 bits of each
        const auto halves = [](V a, V b) {
            return vreinterpretq_u16_u32(vuzp1q_u32(vreinterpretq_u32_u16(a), vreinterpretq_u32_u16(b)));
        };
        return vuzp1q_u16(halves(q[0], q[1]), halves(q[2], q[3]));
    }
    static void quads_of(V words, V* q) {
        const uint32x4_t low = vmovl_u16(vget_low_u16(words)), high = vmovl_high_u16(words);
        q[0] = of_quads(vmovl_u32(vget_low_u32(low)));
        q[1] = of_quads(vmovl_high_u32(low));
        q[2] = of_quads(vmovl_u32(vget_low_u32(high)));
        q[3] = of_quads(vmovl_high_u32(high));
    }
};

uint16_t* encode_rows(const uint32_t* low, const uint8_t* high, size_t rows, int lanes, uint64_t* states,
                      uint16_t* words_end) {
    switch (lanes) {
        case 2:
            return encode_rows_of<Neon, 1>(low, high, rows, states, words_end);
        case 4:
            return encode_rows_of<Neon, 2>(low, high, rows, states, words_end);
        case 8:
            return encode_rows_of<Neon, 4>(low, high, rows, states, words_end);
        case 16:
            return encode_rows_of<Neon, 8>(low, high, rows, states, words_end);
        case 32:
            return encode_rows_of<Neon, 16>(low, high, rows, states, words_end);
        case 64:
            return encode_rows_of<Neon, 32>(low, high, rows, states, words_end);
        default:
            return encode_rows_plain(low, high, rows, lanes, states, words_end);
    }
}

Status decode_mixture(const MixtureView& view, uint8_t* symbols, size_t rows, int lanes, uint64_t* states,
                      const uint16_t** words, const uint16_t* words_end) {
    // From 16 lanes on the binary search takes fewer instructions, unless nearly all symbols are within a window: with
    // 3 components 228 a symbol whatever it is (64 lanes), while the window takes 158 at 1.5 bits and 402 at 3.2.
    switch (lanes) {
        case 16:
            return decode_binary<Neon, 2>(view, symbols, rows, states, words, words_end);
        case 32:
            return decode_binary<Neon, 4>(view, symbols, rows, states, words, words_end);
        case 64:
            return decode_binary<Neon, 8>(view, symbols, rows, states, words, words_end);
        default:
            return decode_window<Neon>(view, symbols, rows, lanes, states, words, words_end);
    }
}

void mixture_params(const ParamsJob& job) {
    run_params(job, finish_params_plain);
}

}  // namespace

const Kernels& neon_kernels() {
    static const Kernels kernels = {mixture_intervals<Neon>, mixture_cdf<Neon>, encode_rows, decode_mixture,
                                    mixture_params};
    return kernels;
}

}  // namespace l2c

#endif  // __aarch64__
