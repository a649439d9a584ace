// The kernels of an integer D with the NEON that every ARM64 has: bytes are widened to int16, and products of int16
// added to int32 (vmlal_s16, which cannot wrap here: see dense_conv.h).

#if defined(__aarch64__)

#include "simd/dense_conv_neon.h"

#include <arm_neon.h>

#include "simd/dense_conv_kernels.h"

namespace l2c {
namespace {

// Inputs of a convolution, and weights [in][16].
struct Bytes {
    using X = std::uint8_t;
    static int16x8_t load8(const X* x) { return vreinterpretq_s16_u16(vmovl_u8(vld1_u8(x))); }
    // Of two inputs, outputs 8 half .. 8 half + 7.
    static int16x8x2_t load_weights(const std::int16_t* w, int half) {
        return {{vld1q_s16(w + 8 * half), vld1q_s16(w + kDenseBlock + 8 * half)}};
    }
};

// Those of a matrix, and weights [in / 2][16][2].
struct Words {
    using X = std::int16_t;
    static int16x8_t load8(const X* x) { return vld1q_s16(x); }
    static int16x8x2_t load_weights(const std::int16_t* w, int half) { return vld2q_s16(w + kDenseBlock * half); }
};

// The inputs of lanes kLane and kLane + 1, whose weights come next.
template <class Form, int kLane, int P>
inline void add_pair(const int16x8_t (&value)[P], const std::int16_t*& w, int32x4_t (&acc)[P][4]) {
    const int16x8x2_t weight[2] = {Form::load_weights(w, 0), Form::load_weights(w, 1)};
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            int32x4_t &low = acc[p][2 * half], &high = acc[p][2 * half + 1];
            low = vmlal_laneq_s16(low, vget_low_s16(weight[half].val[0]), value[p], kLane);
            high = vmlal_high_laneq_s16(high, weight[half].val[0], value[p], kLane);
            low = vmlal_laneq_s16(low, vget_low_s16(weight[half].val[1]), value[p], kLane + 1);
            high = vmlal_high_laneq_s16(high, weight[half].val[1], value[p], kLane + 1);
        }
    }
    keep_loads_below();
    w += 2 * kDenseBlock;
}

template <class Form, int P>
void run_tile(const DenseTile<typename Form::X, std::int16_t>& tile) {
    using X = typename Form::X;
    int32x4_t acc[P][4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
        const int32x4_t bias = tile.bias == nullptr ? vdupq_n_s32(0) : vld1q_s32(tile.bias + 4 * n);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[p][n] = bias;
    }
    const std::int16_t* w = tile.weights;
    for (int row = 0; row < tile.rows; ++row) {
        const X* x = tile.x + row * tile.x_row;
        int left = tile.inputs;
        int16x8_t value[P];
        for (; left >= 8; left -= 8, x += 8) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) value[p] = Form::load8(x + p * tile.x_pixel);
            add_pair<Form, 0>(value, w, acc);
            add_pair<Form, 2>(value, w, acc);
            add_pair<Form, 4>(value, w, acc);
            add_pair<Form, 6>(value, w, acc);
        }
        for (; left > 0; left -= 2, x += 2) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const X* const pair = x + p * tile.x_pixel;
                value[p] = vsetq_lane_s16(pair[1], vdupq_n_s16(pair[0]), 1);
            }
            add_pair<Form, 0>(value, w, acc);
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) vst1q_s32(tile.sums + p * tile.sums_pixel + 4 * n, acc[p][n]);
    }
}

template <class Form>
constexpr void (*kTiles[kMostPixels + 1])(const DenseTile<typename Form::X, std::int16_t>&) = {
    nullptr, run_tile<Form, 1>, run_tile<Form, 2>, run_tile<Form, 3>, run_tile<Form, 4>};

void sums(const DenseCall& call, void*) {
    run_tiles(kTiles<Bytes>, first_tile<std::uint8_t, std::int16_t>(call), block_size(call), call.blocks, call.pixels);
}

inline float32x4_t leaky4(const std::int32_t* sums, const float* above, const float* below) {
    const int32x4_t sum = vld1q_s32(sums);
    return vmulq_f32(vcvtq_f32_s32(sum), vbslq_f32(vcltzq_s32(sum), vld1q_f32(below), vld1q_f32(above)));
}

inline float32x4_t product4(const std::int32_t* sums, const float* multiplier) {
    return vmulq_f32(vcvtq_f32_s32(vld1q_s32(sums)), vld1q_f32(multiplier));
}

// Eight products, half to even. Saturated to 32 bits and then to 16, which is what clamping them first would give.
inline int16x8_t rounded8(float32x4_t low, float32x4_t high) {
    return vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(low)), vqmovn_s32(vcvtnq_s32_f32(high)));
}

inline int16x8_t leaky8(const DenseOutput& out, int p, int c) {
    const std::int32_t* const sums = out.sums + p * out.sums_pixel + c;
    return rounded8(leaky4(sums, out.above + c, out.below + c), leaky4(sums + 4, out.above + c + 4, out.below + c + 4));
}

// Into the stream, and bytes of it. Zero points are 0..255, so no sum or difference here leaves int16: what a byte
// leaves of a value has the value's sign, or is a part of a byte's unit.
inline void store_both(const DenseOutput& out, int p, int c, int16x8_t value) {
    vst1q_s16(out.stream + p * out.stream_pixel + c, value);
    const int16x8_t zero = vld1q_s16(out.zero + c);
    const uint8x8_t byte = vqmovun_s16(vaddq_s16(vrshrq_n_s16(value, kStreamBits), zero));
    vst1_u8(out.bytes + p * out.bytes_pixel + c, byte);
    if (out.rest == nullptr) return;
    const int16x8_t coarse = vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(byte)), zero);
    const int16x8_t rest = vsubq_s16(value, vshlq_n_s16(coarse, kStreamBits));
    const int16x8_t fine = vrshrq_n_s16(rest, kStreamBits - kRestBits);
    vst1_u8(out.rest + p * out.bytes_pixel + c, vqmovun_s16(vaddq_s16(fine, vdupq_n_s16(kRestZero))));
}

// (stream + product) * scale.
inline float32x4_t added4(const DenseOutput& out, int p, int c, int16x4_t before) {
    float32x4_t product = product4(out.sums + p * out.sums_pixel + c, out.above + c);
    product = vminq_f32(vmaxq_f32(product, vdupq_n_f32(-kDenseClamp)), vdupq_n_f32(kDenseClamp));
    const int32x4_t total = vaddw_s16(vcvtnq_s32_f32(product), before);
    return vmulq_f32(vcvtq_f32_s32(total), vld1q_f32(out.scale + c));
}

// Calls body(p, c) for eight channels at a time; returns the channel at which they end.
template <typename Body>
inline int by_eights(const DenseOutput& out, Body body) {
    const int whole = out.channels / 8 * 8;
    for (int p = 0; p < out.pixels; ++p) {
        for (int c = 0; c < whole; c += 8) body(p, c);
    }
    return whole;
}

}  // namespace

namespace neon {

void matrix(const MatrixCall& call) {
    run_tiles(kTiles<Words>, first_tile(call), block_size(call), call.blocks, call.pixels);
}

void leaky_stream(const DenseOutput& out) {
    plain_leaky_stream(out, by_eights(out, [&](int p, int c) {
                           store_both(out, p, c, vmaxq_s16(leaky8(out, p, c), vdupq_n_s16(-32767)));
                       }));
}

void leaky_bytes(const DenseOutput& out) {
    plain_leaky_bytes(out, by_eights(out, [&](int p, int c) {
                          const int16x8_t value = vqaddq_s16(leaky8(out, p, c), vld1q_s16(out.zero + c));
                          vst1_u8(out.bytes + p * out.bytes_pixel + c, vqmovun_s16(value));
                      }));
}

void residual(const DenseOutput& out) {
    plain_residual(
        out, by_eights(out, [&](int p, int c) {
            const int16x8_t before = vld1q_s16(out.stream + p * out.stream_pixel + c);
            store_both(out, p, c,
                       rounded8(added4(out, p, c, vget_low_s16(before)), added4(out, p, c + 4, vget_high_s16(before))));
        }));
}

void words(const DenseOutput& out) {
    plain_words(out, by_eights(out, [&](int p, int c) {
                    const std::int32_t* const sums = out.sums + p * out.sums_pixel + c;
                    vst1q_s16(out.stream + p * out.stream_pixel + c,
                              rounded8(product4(sums, out.above + c), product4(sums + 4, out.above + c + 4)));
                }));
}

}  // namespace neon

extern const DenseBackend kDenseNeon = {"neon",         /*step=*/1,   /*weight_bytes=*/2, /*scratch_bytes=*/0,
                                        sums,           neon::matrix, neon::leaky_stream, neon::leaky_bytes,
                                        neon::residual, neon::words};

}  // namespace l2c

#endif  // __aarch64__
