#include "exact/tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace l2c {
namespace {

constexpr int kBits = 20;                        // of fixed point
constexpr std::int64_t kLog2E = 1549082005;      // log2(e) in Q30
constexpr int kExpBits = 30, kExpStepBits = 10;  // of an entry of the table of powers; its steps in Q20
constexpr int kTailBits = 24, kTailStepBits = 14;
constexpr int kSharpnessBits = 2;  // of the smooth minimum
constexpr int kRestBits = 3;
constexpr double kRestZero = 128.0;
constexpr std::int32_t kMost = (1 << 23) - 1;

constexpr std::int64_t rounded(std::int64_t x, int bits) {
    return (x + (std::int64_t{1} << (bits - 1))) >> bits;
}

// 2^exponent, for -1022 <= exponent <= 1023.
double power_of_two(std::int64_t exponent) {
    const std::int64_t bits = (exponent + 1023) << 52;
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest integer, halves to even, for |x| < 2^51.
double to_even(double x) {
    constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
    return (x + kMagic) - kMagic;
}

// e^x for x in Q20.
double exponential(const FunctionTablesView& tables, std::int64_t x) {
    const std::int64_t y = rounded(x * kLog2E, kExpBits), part = y & ((1 << kBits) - 1);
    const std::int64_t* entry = tables.exp2 + (part >> kExpStepBits);
    const std::int64_t rest = part & ((1 << kExpStepBits) - 1);
    const std::int64_t value = entry[0] + rounded((entry[1] - entry[0]) * rest, kExpStepBits);
    return static_cast<double>(value) * power_of_two((y >> kBits) - kExpBits);
}

// ln(1 + e^x), both Q20.
std::int64_t softplus(const FunctionTablesView& tables, std::int64_t x) {
    const std::int64_t size = std::min<std::int64_t>(x < 0 ? -x : x, std::int64_t{1} << (kTailStepBits + 10));
    const std::int64_t index = size >> kTailStepBits, rest = size & ((1 << kTailStepBits) - 1);
    const std::int64_t following = std::min<std::int64_t>(index + 1, FunctionTablesView::kEntries - 1);
    const std::int64_t low = tables.tail[index];
    const std::int64_t tail = low + rounded((tables.tail[following] - low) * rest, kTailStepBits);
    return std::max<std::int64_t>(x, 0) + rounded(tail, kTailBits - kBits);
}

}  // namespace

void exact_factors(const FunctionTablesView& tables, const FactorView& view, std::int32_t* factor,
                   std::int32_t* shift) {
    const auto entries = static_cast<std::size_t>(view.entries);
    std::vector<double> values(entries);
    for (int k = 0; k < view.channels; ++k, factor += view.entries) {
        const std::int64_t wanted = view.wanted[k];
        if (view.limit == nullptr) {
            for (std::size_t i = 0; i < entries; ++i) values[i] = exponential(tables, view.change[i] - wanted);
        } else if (view.is_mean[k]) {
            std::fill(values.begin(), values.end(), view.mean[k]);
        } else {
            const std::int64_t limit = view.limit[k];
            for (std::size_t i = 0; i < entries; ++i) {
                const std::int64_t above = (limit - (wanted - view.change[i])) * (1 << kSharpnessBits);
                values[i] = exponential(tables, rounded(softplus(tables, above), kSharpnessBits) - limit);
            }
        }
        int exponent;
        std::frexp(*std::max_element(values.begin(), values.end()), &exponent);
        shift[k] = 23 - exponent;
        const double scale = power_of_two(shift[k]);
        for (std::size_t i = 0; i < entries; ++i) {
            factor[i] = std::min(static_cast<std::int32_t>(to_even(values[i] * scale)), kMost);
        }
    }
}

void exact_first_input(int channels, const std::int32_t* level, const double* plain, const float* scale,
                       const std::uint8_t* zero, std::uint8_t* out) {
    constexpr double kUnit = 1.0 / 256.0, kRest = 1 << kRestBits, kFar = 1e6;  // far beyond what both bytes can say
    std::uint8_t* rest = out + std::size_t{256} * static_cast<std::size_t>(channels);
    for (int k = 0; k < channels; ++k, level += 256, out += 256, rest += 256) {
        const double origin = zero[k];
        for (int i = 0; i < 256; ++i) {
            const double coefficient = static_cast<double>(level[i]) * kUnit * plain[k];
            const double scaled = std::clamp(coefficient * static_cast<double>(scale[k]), -kFar, kFar);
            const double first = std::clamp(to_even(scaled) + origin, 0.0, 255.0);
            const double second = to_even((scaled - (first - origin)) * kRest) + kRestZero;
            out[i] = static_cast<std::uint8_t>(first);
            rest[i] = static_cast<std::uint8_t>(std::clamp(second, 0.0, 255.0));
        }
    }
}

}  // namespace l2c
