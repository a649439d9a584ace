// Where the symbols of a tile come from: an encoder that is told them, or a decoder that finds them.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/rans.h"

namespace l2c {

// Errors are exceptions, which end the tile.
class SymbolCoder {
 public:
    virtual ~SymbolCoder() = default;
    // Codes n symbols of a group; `symbols` holds them when encoding, else receives them.
    virtual void mixture(const MixtureView& view, std::uint8_t* symbols, std::size_t n) = 0;
    // n equally likely symbols of `bits` bits.
    virtual void uniform(std::uint8_t* symbols, std::size_t n, int bits) = 0;
    // n symbols, each under the row of its index; no row may have more than 256 symbols.
    virtual void table(const TableView& tables, const std::int32_t* indexes, std::uint8_t* symbols, std::size_t n) = 0;
    // Whether a group must come in one call (for observers), rather than in pieces that stay in the cache.
    virtual bool whole_groups() const { return false; }
};

class EncodingCoder final : public SymbolCoder {
 public:
    explicit EncodingCoder(RangeEncoder& encoder) : encoder_(encoder) {}
    void mixture(const MixtureView& view, std::uint8_t* symbols, std::size_t n) override {
        encoder_.push_mixture(view, symbols, n);
    }
    void uniform(std::uint8_t* symbols, std::size_t n, int bits) override {
        const std::vector<std::uint32_t> values(symbols, symbols + n);
        encoder_.push_raw(values.data(), n, bits);
    }
    void table(const TableView& tables, const std::int32_t* indexes, std::uint8_t* symbols, std::size_t n) override {
        const std::vector<std::int32_t> values(symbols, symbols + n);
        encoder_.push_table(tables, values.data(), indexes, n);
    }

 private:
    RangeEncoder& encoder_;
};

class DecodingCoder final : public SymbolCoder {
 public:
    explicit DecodingCoder(RangeDecoder& decoder) : decoder_(decoder) {}
    void mixture(const MixtureView& view, std::uint8_t* symbols, std::size_t n) override {
        decoder_.pop_mixture(view, symbols, n);
    }
    void uniform(std::uint8_t* symbols, std::size_t n, int bits) override {
        std::vector<std::uint32_t> values(n);
        decoder_.pop_raw(bits, values.data(), n);
        for (std::size_t i = 0; i < n; ++i) symbols[i] = static_cast<std::uint8_t>(values[i]);
    }
    void table(const TableView& tables, const std::int32_t* indexes, std::uint8_t* symbols, std::size_t n) override {
        std::vector<std::int32_t> values(n);
        decoder_.pop_table(tables, indexes, values.data(), n);
        for (std::size_t i = 0; i < n; ++i) symbols[i] = static_cast<std::uint8_t>(values[i]);
    }

 private:
    RangeDecoder& decoder_;
};

}  // namespace l2c
