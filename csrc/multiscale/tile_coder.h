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
#include "core/symbol_coder.h"
#include "multiscale/tile_model.h"

namespace l2c {

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
