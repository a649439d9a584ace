// What the programs here share: how they fail, random numbers, arrays that end where memory ends, files from Python.

#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::exit(1);
}

inline void require(bool condition, const std::string& what) {
    if (!condition) fail(what);
}

class Random {
 public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_ * 0x9E3779B97F4A7C15u;
    }
    int below(int n) { return static_cast<int>((next() >> 32) * static_cast<uint64_t>(n) >> 32); }
    bool one_in(int n) { return below(n) == 0; }
    // 0..2^bits - 1, all sizes alike.
    uint64_t of_any_size(int bits) { return (next() >> (64 - bits)) >> below(bits); }

 private:
    uint64_t state_;
};

// An array whose end is followed by a page that cannot be touched.
template <class T>
class Guarded {
 public:
    explicit Guarded(size_t size) : size_(size) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        length_ = (size * sizeof(T) + page - 1) / page * page + page;
        memory_ = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory_ == MAP_FAILED) fail("no memory");
        char* const end = static_cast<char*>(memory_) + length_ - page;
        if (mprotect(end, page, PROT_NONE) != 0) fail("no page can be protected");
        data_ = reinterpret_cast<T*>(end - size * sizeof(T));
    }
    ~Guarded() { munmap(memory_, length_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    T* data() { return data_; }
    size_t size() const { return size_; }
    T& operator[](size_t i) { return data_[i]; }
    bool operator==(const Guarded& other) const {
        return size_ == other.size_ && (size_ == 0 || std::memcmp(data_, other.data_, size_ * sizeof(T)) == 0);
    }

 private:
    size_t size_, length_;
    void* memory_;
    T* data_;
};

inline float random_multiplier(Random& random) {
    constexpr float kExtremes[] = {0.0f, -0.0f, 3e38f, -3e38f, 1e-40f, 0.5f, 1.0f, 0x1p-24f};
    if (random.one_in(8)) return kExtremes[random.below(8)];
    return static_cast<float>(random.below(2000) - 200) * (random.one_in(2) ? 1e-4f : 1e-5f);
}

// A file of little-endian arrays.
class Reader {
 public:
    explicit Reader(const char* path) {
        std::FILE* file = std::fopen(path, "rb");
        if (file == nullptr) fail("the file cannot be opened");
        char buffer[1 << 16];
        for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), file)) > 0;)
            bytes_.insert(bytes_.end(), buffer, buffer + n);
        std::fclose(file);
    }

    template <class T>
    std::vector<T> array(size_t count) {
        if (count * sizeof(T) > bytes_.size() - at_) fail("the file ends too early");
        std::vector<T> values(count);
        if (count > 0) std::memcpy(values.data(), bytes_.data() + at_, count * sizeof(T));
        at_ += count * sizeof(T);
        return values;
    }
    int number() { return array<std::int32_t>(1)[0]; }
    size_t size() { return static_cast<size_t>(number()); }
    bool done() const { return at_ == bytes_.size(); }

 private:
    std::vector<char> bytes_;
    size_t at_ = 0;
};
