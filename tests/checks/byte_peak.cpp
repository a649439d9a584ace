// How many products of bytes a core can add to sums in a second, and so many cores together: AVX-512 VNNI, all operands
// in registers. `g++ -O3 -std=c++17 -mavx512f -mavx512vnni -pthread byte_peak.cpp`; tests/checks/pixels.py does that.
// Prints the best GMAC/s of five runs for each number of threads in the arguments.

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kSums = 12;  // independent: more than latency times ports
constexpr int kRounds = 4000000;

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

int main(int count, char** arguments) {
    for (int i = 1; i < count; ++i) {
        const int threads = std::atoi(arguments[i]);
        double best = 0.0;
        for (int round = 0; round < 5; ++round) {
            const auto begin = std::chrono::steady_clock::now();
            std::vector<std::thread> pool;
            std::vector<int> results(static_cast<std::size_t>(threads));
            for (int& result : results) pool.emplace_back([&result] { result = run(); });
            for (std::thread& thread : pool) thread.join();
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
            best = std::max(best, 64e-9 * kSums * kRounds * threads / seconds);
        }
        std::printf("%.1f\n", best);
    }
    return 0;
}
