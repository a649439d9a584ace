// The kernels of an integer D in plain C++: what runs without AVX2, and what the others are read against.

#include "simd/dense_conv_kernels.h"

namespace l2c {
namespace {

void add_run(const std::uint8_t* x, int length, const std::int8_t* weights, std::int32_t* acc) {
    for (int i = 0; i < length; ++i, weights += kDenseBlock) {
        const auto value = static_cast<std::int16_t>(x[i]);
        for (int o = 0; o < kDenseBlock; ++o) acc[o] += value * static_cast<std::int16_t>(weights[o]);
    }
}

void sums(const DenseCall& call, void*) {
    const int run = call.kernel * call.in_padded;
    for (int p = 0; p < call.pixels; ++p) {
        for (int block = 0; block < call.blocks; ++block) {
            std::int32_t acc[kDenseBlock];
            for (int o = 0; o < kDenseBlock; ++o) acc[o] = call.bias[block * kDenseBlock + o];
            const std::int8_t* weights =
                static_cast<const std::int8_t*>(call.weights) + std::ptrdiff_t{block} * call.kernel * run * kDenseBlock;
            for (int row = 0; row < call.kernel; ++row) {
                add_run(call.x + row * call.x_row + p * call.x_pixel, run, weights + row * run * kDenseBlock, acc);
            }
            std::int32_t* out = call.sums + (std::ptrdiff_t{p} * call.blocks + block) * kDenseBlock;
            for (int o = 0; o < kDenseBlock; ++o) out[o] = acc[o];
        }
    }
}

void matrix(const MatrixCall& call) {
    for (int p = 0; p < call.pixels; ++p) {
        const std::int16_t* x = call.x + std::ptrdiff_t{p} * call.in_padded;
        for (int block = 0; block < call.blocks; ++block) {
            const std::int16_t* weights = call.weights + std::ptrdiff_t{block} * call.in_padded * kDenseBlock;
            std::int32_t acc[kDenseBlock] = {};
            for (int i = 0; i < call.in_padded; i += 2, weights += 2 * kDenseBlock) {
                for (int o = 0; o < kDenseBlock; ++o) acc[o] += x[i] * weights[2 * o] + x[i + 1] * weights[2 * o + 1];
            }
            std::int32_t* out = call.sums + (std::ptrdiff_t{p} * call.blocks + block) * kDenseBlock;
            for (int o = 0; o < kDenseBlock; ++o) out[o] = acc[o];
        }
    }
}

void leaky_stream(const DenseOutput& out) {
    plain_leaky_stream(out, 0);
}
void leaky_bytes(const DenseOutput& out) {
    plain_leaky_bytes(out, 0);
}
void residual(const DenseOutput& out) {
    plain_residual(out, 0);
}
void words(const DenseOutput& out) {
    plain_words(out, 0);
}

}  // namespace

extern const DenseBackend kDenseScalar = {"scalar", /*step=*/1, /*weight_bytes=*/1, /*scratch_bytes=*/0,
                                          sums,     matrix,     leaky_stream,       leaky_bytes,
                                          residual, words};

}  // namespace l2c
