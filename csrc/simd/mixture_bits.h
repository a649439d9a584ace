// Bits of latents under their mixtures of logistics, in float32, with their gradient: what training and the search over
// latents ask for. Defined by l2c/ops/reference.py (`mixture_bits`, `neighbour_bits`); nothing here decides a
// probability of the coder, whose own arithmetic is in core/mixture_cdf.h.
//
// Arrays are C-contiguous, a row being the channels of one position: x [rows][channels], parameters
// [rows][3][mixtures][channels] (logits in nats, means in latents, log2 inverse scales per latent). NaN comes out where
// NaN goes in.

#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace l2c {

struct MixtureBitsInput {
    std::int64_t rows;
    std::int64_t rows_per_picture;
    int channels;
    int mixtures;
    const float* x;
    const float* params;
    const float* steps;  // S = 2^(8-b) of each picture
    float least, most;   // limits of the log2 inverse scales
    float margin;        // so many steps from an end of the range a latent belongs to it
    int threads;
};

// -log2 p of each latent: out [rows][channels].
void mixture_bits(const MixtureBitsInput& input, float* out, Cpu cpu);

// The gradient of sum(dout * bits): dx like x, dparams like params or null.
void mixture_bits_backward(const MixtureBitsInput& input, const float* dout, float* dx, float* dparams, Cpu cpu);

// Bits of each latent, and how they change where it rises or falls by one level; infinite outside the range.
void neighbour_bits(const MixtureBitsInput& input, float* here, float* rise, float* fall, Cpu cpu);

}  // namespace l2c
