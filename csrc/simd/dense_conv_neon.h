// What both NEON forms of an integer D's kernels have alike: all but the sums of convolutions.
//
// A tile is 4 pixels x one block of 16 outputs: 16 registers of sums, 4 of inputs, 4 of weights. 6 pixels would just
// fit and save few loads, but GCC 12 then spills sums.

#pragma once

#include "simd/dense_conv.h"

namespace l2c {
namespace {  // internal linkage, see dense_conv_kernels.h

constexpr int kMostPixels = 4;

// The compiler moves no load to above this: it would load many weights ahead, and spill sums.
inline void keep_loads_below() {
    asm volatile("" ::: "memory");
}

}  // namespace

namespace neon {

void matrix(const MatrixCall& call);
void leaky_stream(const DenseOutput& out);
void leaky_bytes(const DenseOutput& out);
void residual(const DenseOutput& out);
void words(const DenseOutput& out);

}  // namespace neon
}  // namespace l2c
