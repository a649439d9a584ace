// The two large tables of a trade-off, as l2c/exact/constants.py computes them: the same numbers in a fraction of the
// time.

#pragma once

#include <cstdint>

namespace l2c {

// Tables of exponentials, l2c/exact/fixed.py.
struct FunctionTablesView {
    static constexpr int kEntries = 1025;
    const std::int64_t* exp2;  // 2^(i / 1024) in Q30
    const std::int64_t* tail;  // ln(1 + e^(-i / 64)) in Q24
};

// Numbers in Q20, below 2^27 in magnitude. Without companding `limit` is null, and the last two are not read.
struct FactorView {
    int channels, entries;
    const std::int64_t* wanted;  // [channels] log gains
    const std::int64_t* change;  // [entries] log factors of the local gains
    const std::int64_t* limit;   // [channels] log of the largest gains
    const bool* is_mean;         // [channels]
    const double* mean;          // [channels] what means have in all entries
};

// What coefficients are multiplied with for each argument of the local gains.
// factor: [channels][entries], below 2^23, with the largest of a channel from 2^22 on. shift: [channels], by how many
// bits factors were moved to the left.
void exact_factors(const FunctionTablesView& tables, const FactorView& view, std::int32_t* factor, std::int32_t* shift);

// The first layer's input for each latent -128..127, in two bytes: out [2 channels][256].
// level: [channels][256] in Q8. plain: [channels], coefficients per level. scale: [channels], bytes per coefficient.
void exact_first_input(int channels, const std::int32_t* level, const double* plain, const float* scale,
                       const std::uint8_t* zero, std::uint8_t* out);

}  // namespace l2c
