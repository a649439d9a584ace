// P and the range coder over whole tiles: every step of every scale, the mixture parameters, the coder and the fill of
// the truth, from the coarsest scale to the finest, without a return to the caller in between.
//
// What decides nothing is left out: inputs and heads of channels that a tile does not use, and all steps after the last
// one that codes a symbol.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/cpu.h"
#include "core/rans.h"
#include "multiscale/tile_model.h"

namespace l2c {

// Where symbols come from: an encoder that is told them, or a decoder that finds them. Errors are exceptions, which end
// the tile.
class SymbolCoder {
 public:
    virtual ~SymbolCoder() = default;
    // Codes n symbols of a group; `symbols` holds them when encoding, else receives them.
    virtual void mixture(const MixtureView& view, std::uint8_t* symbols, std::size_t n) = 0;
    // n equally likely symbols of `bits` bits.
    virtual void uniform(std::uint8_t* symbols, std::size_t n, int bits) = 0;
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

 private:
    RangeDecoder& decoder_;
};

struct Tile {
    std::int64_t height, width;  // of the latents, >= 1
    int bits;                    // b, 1..8
    int used;                    // channels coded, 0..c; the others are zero everywhere
    const std::uint8_t* planes;  // [num_scales + 1][num_planes]: constant inputs per scale, then those of the prior
    SymbolCoder* coder;          // of this tile alone
    bool encodes;                // `symbols` are known
    std::uint8_t* symbols;       // [c][height][width]; complete afterwards, unused channels included
};

// Orders that put the hidden channels together that are seldom zero, for TileModel's constructor. They come from tiles
// that are sampled from the model, by decoding noise under each of the constant planes (as in Tile).
ChannelOrders choose_orders(const TileModel& model, const std::vector<const std::uint8_t*>& planes, Cpu cpu);

// Codes all tiles: several at a time on one thread each, or one at a time on all threads, as their sizes suggest.
// Throws std::invalid_argument for a field out of range, before any tile is coded, and else what the first tile that
// fails (in the order given) threw: BitstreamError, std::invalid_argument, std::bad_alloc.
void code_tiles(const TileModel& model, const std::vector<Tile>& tiles, int threads, Cpu cpu);

}  // namespace l2c
