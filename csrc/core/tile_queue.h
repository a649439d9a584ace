// Many tiles on some threads: one at a time on all of them, several at a time on one each, or both.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <numeric>
#include <vector>

#include "core/thread_pool.h"

namespace l2c {

// How many of the tiles, largest first, are best coded one at a time on all threads before the others are coded side by
// side on one thread each: whatever is estimated to end first.
inline std::size_t choose_alone(const std::vector<std::int64_t>& sizes, int threads) {
    constexpr double kShare = 0.8;  // of its threads that a single tile puts to use
    if (threads < 2 || sizes.size() > static_cast<std::size_t>(8 * threads)) return 0;
    std::size_t best = 0;
    double least = 0, before = 0;
    for (std::size_t alone = 0; alone <= sizes.size(); ++alone) {
        std::vector<double> busy(static_cast<std::size_t>(threads));
        for (std::size_t i = alone; i < sizes.size(); ++i) {
            *std::min_element(busy.begin(), busy.end()) += static_cast<double>(sizes[i]);
        }
        const double total = before + *std::max_element(busy.begin(), busy.end());
        if (alone == 0 || total < least) {
            best = alone;
            least = total;
        }
        if (alone == static_cast<std::size_t>(threads) || alone == sizes.size()) break;
        before += static_cast<double>(sizes[alone]) / (kShare * threads);
    }
    return best;
}

// Calls code(i, threads for this tile) once for every i < sizes.size(), unless an earlier tile has failed.
//   sizes   what each tile costs, in any unit
// Throws what the first tile that fails (in the order given) threw.
template <class Code>
void run_tiles(const std::vector<std::int64_t>& sizes, int threads, Code code) {
    threads = std::clamp(threads, 1, kMaxThreads);
    std::vector<std::size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return sizes[a] > sizes[b]; });
    std::vector<std::int64_t> falling;
    for (std::size_t i : order) falling.push_back(sizes[i]);

    // The tile that fails first in the order given decides the error; those after it need not be coded.
    std::atomic<std::size_t> first_failed{sizes.size()};
    std::vector<std::exception_ptr> errors(sizes.size());
    const auto code_one = [&](std::size_t i, int its_threads) {
        if (i > first_failed) return;
        try {
            code(i, its_threads);
        } catch (...) {
            errors[i] = std::current_exception();
            std::size_t expected = first_failed;
            while (i < expected && !first_failed.compare_exchange_weak(expected, i)) {
            }
        }
    };
    const std::size_t alone = choose_alone(falling, threads);
    for (std::size_t i = 0; i < alone; ++i) code_one(order[i], threads);
    struct Rest {
        const std::vector<std::size_t>& order;
        const std::size_t alone;
        const decltype(code_one)& code;
    } rest = {order, alone, code_one};
    parallel_for(
        threads, static_cast<std::int64_t>(sizes.size() - alone),
        [](void* context, std::int64_t i) {
            const Rest& rest = *static_cast<Rest*>(context);
            rest.code(rest.order[rest.alone + static_cast<std::size_t>(i)], 1);
        },
        &rest);
    if (first_failed < sizes.size()) std::rethrow_exception(errors[first_failed]);
}

}  // namespace l2c
