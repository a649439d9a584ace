#include "core/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace l2c {
namespace {

constexpr int kSpins = 1000;  // pauses before a worker sleeps: some tens of microseconds

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

struct Loop {
    void (*task)(void*, std::int64_t);
    void* context;
    std::int64_t count;
    std::atomic<std::int64_t> next{0};

    void work() {
        for (std::int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(context, i);
    }
};

class Pool {
 public:
    // Returns false, having done nothing, when another thread is using the pool.
    bool run(int threads, Loop& loop) {
        std::unique_lock<std::mutex> use(use_, std::try_to_lock);
        if (!use.owns_lock()) return false;
        start_workers(threads - 1);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            loop_ = &loop;
            places_ = threads - 1;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        loop.work();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            loop_ = nullptr;  // from here on no worker can join
        }
        for (int spins = 0; active_.load() != 0; ++spins) {
            if (spins < kSpins) {
                pause();
            } else {
                std::this_thread::yield();
            }
        }
        return true;
    }

 private:
    void start_workers(int wanted) {
        while (num_workers_ < wanted) {
            try {
                std::thread(&Pool::worker, this).detach();
            } catch (const std::system_error&) {
                return;  // the system grants no more threads; those there are do the work
            }
            ++num_workers_;
        }
    }

    void worker() {
        std::uint64_t seen = 0;
        for (;;) {
            for (int spins = 0; spins < kSpins && generation_.load() == seen; ++spins) pause();
            Loop* loop = nullptr;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load() != seen; });
                seen = generation_.load();
                if (loop_ == nullptr || places_ == 0) continue;
                loop = loop_;
                --places_;
                active_.fetch_add(1);
            }
            loop->work();
            active_.fetch_sub(1);
        }
    }

    std::mutex use_;       // held by the caller whose loop runs
    int num_workers_ = 0;  // guarded by use_
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> generation_{0};  // changes, under mutex_, with every loop
    Loop* loop_ = nullptr;                      // guarded by mutex_
    int places_ = 0;                            // workers that may still join; guarded by mutex_
    std::atomic<int> active_{0};                // workers inside *loop_; rises only under mutex_ with loop_ set
};

std::atomic<Pool*> g_pool{nullptr};

Pool& pool() {
    Pool* current = g_pool.load();
    if (current != nullptr) return *current;
#if !defined(_WIN32)
    static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
    (void)registered;
#endif
    Pool* fresh = new Pool();
    if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;  // another thread was faster; this one has no workers yet
    return *current;
}

}  // namespace

void parallel_for(int threads, std::int64_t count, void (*task)(void* context, std::int64_t i), void* context) {
    if (threads > kMaxThreads) threads = kMaxThreads;
    if (threads > count) threads = static_cast<int>(count);
    Loop loop{task, context, count};
    if (threads > 1 && pool().run(threads, loop)) return;
    loop.work();
}

}  // namespace l2c
