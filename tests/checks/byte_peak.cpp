// As many products of bytes, added to sums, as a machine can do: AVX-512 VNNI, all operands in registers. Built by
// tests/checks/pixels.py: g++ -O3 -std=c++17 -mavx512f -mavx512vnni -pthread -shared -fPIC.

#include <immintrin.h>

#include <thread>
#include <vector>

namespace {

constexpr int kSums = 12;  // independent: more than latency times ports
constexpr int kRounds = 10000000;

int run() {
    __m512i sum[kSums];
    const __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x04030201);
#pragma GCC unroll 12
    for (int k = 0; k < kSums; ++k) sum[k] = _mm512_set1_epi32(k);
    for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
        for (int k = 0; k < kSums; ++k) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum[k]) : "v"(a), "v"(b));
    }
    __m512i total = sum[0];
#pragma GCC unroll 12
    for (int k = 1; k < kSums; ++k) total = _mm512_add_epi32(total, sum[k]);
    return _mm512_reduce_add_epi32(total);
}

}  // namespace

// Each of so many threads does byte_peak_products() of them.
extern "C" int byte_peak(int threads) {
    std::vector<std::thread> pool;
    std::vector<int> results(static_cast<std::size_t>(threads));
    for (int& result : results) pool.emplace_back([&result] { result = run(); });
    for (std::thread& thread : pool) thread.join();
    return results[0];
}

extern "C" double byte_peak_products() {
    return 64.0 * kSums * kRounds;
}
