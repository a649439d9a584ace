// Memory for vector instructions: grows on demand, 64-byte aligned, never initialised.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace l2c {

class AlignedBuffer {
 public:
    // Room for `size` bytes, whose former content is lost if there was less. Throws std::bad_alloc.
    void* reserve(std::size_t size) {
        if (size > size_) {
            constexpr std::size_t kAlignment = 64;
            size_ = 0;
            storage_.reset();
            storage_.reset(new unsigned char[size + kAlignment]);
            const auto address = reinterpret_cast<std::uintptr_t>(storage_.get());
            data_ = storage_.get() + (kAlignment - address % kAlignment) % kAlignment;
            size_ = size;
        }
        return data_;
    }
    void* data() const { return data_; }
    std::size_t size() const { return size_; }

 private:
    std::unique_ptr<unsigned char[]> storage_;
    unsigned char* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace l2c
