// Kernels of an integer D (csrc/exact): sums of convolutions whose inputs are rarely zero, and what follows them.
//
// A convolution's sums are int32 of uint8 inputs times int8 weights, those of the block transform int32 of int16 times
// int16; both are exact in any order, since no partial sum can wrap (csrc/exact/decoder.cpp checks that). What follows
// is one float32 product, rounded to nearest even, between clamps: see `scaled` in dense_conv_kernels.h.
//
// Kernels whose products are of signed bytes read x - 128 (`DenseBackend::centre`), and biases hold 128 sum w for it.
// Any partial sum is then what the whole sum would be with 128 in place of the inputs that are not in it yet: the same
// bound holds, |bias| + 255 sum|w| < 2^31, for the bias that is read as well.
//
// Every instruction set gives the same integers.

#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cpu.h"

namespace l2c {

constexpr int kDenseBlock = 16;  // output channels are padded to whole blocks

// Sums of neighbouring outputs in a row. Inputs are [rows][pixels][channels] bytes with a border; `x` is the first tap
// of the first output.
struct DenseCall {
    const std::uint8_t* x;
    std::ptrdiff_t x_row, x_pixel;  // bytes; the three taps of a row are neighbours: x_pixel is in_padded
    int kernel;                     // 1 or 3
    int in_padded;                  // a multiple of 4
    const void* weights;            // as `DenseBackend::step` says, 64-byte aligned
    const std::int32_t* bias;       // [blocks * 16], 64-byte aligned, see DenseBackend::centre
    int blocks;
    int pixels;
    std::int32_t* sums;  // [pixels][blocks * 16], 64-byte aligned
};

// The same of int16 inputs [pixels][in_padded] by a matrix, without biases.
struct MatrixCall {
    const std::int16_t* x;
    int in_padded;                // a multiple of 2
    const std::int16_t* weights;  // [blocks][in_padded / 2][16][2], 64-byte aligned
    int blocks;
    int pixels;
    std::int32_t* sums;
};

// Where the channels of neighbouring pixels go, and what they are made with; arrays have a place for every channel.
struct DenseOutput {
    const std::int32_t* sums;   // of the first pixel and channel
    std::ptrdiff_t sums_pixel;  // elements
    int pixels, channels;
    const float* above;        // multipliers of sums >= 0 ...
    const float* below;        // ... and below zero, where there is a LeakyReLU
    const float* scale;        // of the modulator
    const std::int16_t* zero;  // bytes that stand for 0
    std::int16_t* stream;      // int16 outputs, or the residual stream that is read and written
    std::ptrdiff_t stream_pixel;
    std::uint8_t* bytes;
    std::ptrdiff_t bytes_pixel;
    std::uint8_t* rest;  // second bytes of what goes to `bytes`, at the same distances; or null (`residual` alone)
};

struct DenseBackend {
    const char* name;
    int step;  // neighbouring inputs that one instruction multiplies: weights are [block][tap][in / step][16][step]
    int weight_bytes;   // 1: int8, 2: int16
    int scratch_bytes;  // of each input of a call that `sums` copies; 0: none
    void (*sums)(const DenseCall& call, void* scratch);
    void (*matrix)(const MatrixCall& call);
    void (*leaky_stream)(const DenseOutput& out);  // LeakyReLU -> stream, and bytes of it
    void (*leaky_bytes)(const DenseOutput& out);   // LeakyReLU -> bytes
    void (*residual)(const DenseOutput& out);      // (stream + product) * scale -> stream, and bytes of it
    void (*words)(const DenseOutput& out);         // product -> stream
    int centre = 0;  // what `sums` takes from every input before it is multiplied; biases hold so much times sum w
};

// Below the bits of a stream that bytes of it leave out: `STREAM_BITS` of l2c/exact/weights.py.
constexpr int kStreamBits = 6;

// By how many bits second bytes are finer than first ones, and their zero: `REST_BITS`, `REST_ZERO`.
constexpr int kRestBits = 3;
constexpr int kRestZero = 128;

const DenseBackend& dense_backend(Cpu cpu);

extern const DenseBackend kDenseScalar;
#if L2C_X86
extern const DenseBackend kDenseAvx2;
extern const DenseBackend kDenseAvx512;
#elif L2C_ARM64
extern const DenseBackend kDenseNeon;
extern const DenseBackend kDenseNeonDot;
#endif

}  // namespace l2c
