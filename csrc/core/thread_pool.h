// A small persistent pool for loops of short tasks.
//
// Read me first:
//   - parallel_for never waits for a worker to wake up: the caller works through the tasks itself, and a worker that
//     comes too late finds nothing to do.
//   - One loop at a time. A second caller finds the pool busy and runs its loop alone, so calls from several Python
//     threads are safe and never wait for each other.
//   - Workers spin for some microseconds after a loop, because a network is a row of loops, then sleep.
//   - After fork() the child has none of the parent's workers; it forgets the pool and starts its own at its first
//     loop. The pool is never destroyed: its detached workers end with the process.

#pragma once

#include <cstdint>

namespace l2c {

constexpr int kMaxThreads = 64;

// Calls task(context, i) once for every i in [0, count), from at most `threads` threads, the caller's among them.
// Returns when all calls have returned. `task` must not throw.
void parallel_for(int threads, std::int64_t count, void (*task)(void* context, std::int64_t i), void* context);

}  // namespace l2c
