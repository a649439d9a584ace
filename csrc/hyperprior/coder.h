// A hyperprior model and the range coder over whole tiles: hyper-latents, h_s, contexts, mixtures, symbols and escapes,
// wavefront by wavefront, without a return to the caller in between.

#pragma once

#include <cstdint>
#include <vector>

#include "core/cpu.h"
#include "core/symbol_coder.h"
#include "hyperprior/model.h"

namespace l2c::hyperprior {

struct Tile {
    std::int64_t height, width;  // of the latents, >= 1
    int level;                   // of the model
    int used;                    // channels coded, 0..M; the others are zero everywhere
    SymbolCoder* coder;          // of this tile alone
    bool encodes;                // `latents` and `side` are known
    const std::uint8_t* side;  // [N][ceil(height / 4)][ceil(width / 4)], z + 128, when encoding; not read if factorized
    std::int16_t* latents;     // [M][height][width]; afterwards all of them as they are decoded
};

// Codes all tiles: several at a time on one thread each, or one at a time on all threads, as their sizes suggest.
// Throws std::invalid_argument for a field out of range, a latent beyond Level::max_latent or a level that cannot be
// packed, and else what the first tile that fails (in the order given) threw: BitstreamError, std::bad_alloc.
void code_tiles(const Model& model, const std::vector<Tile>& tiles, int threads, Cpu cpu);

}  // namespace l2c::hyperprior
