// Read me first:
//   - What comes first in a tile's stream is z, then groups of latents: the wavefronts t = x + 3 y of a context model,
//   all
//     positions at once of the others. Latents are kept as [height][width][used] and turned at once, before (encoding)
//     or after, since the coder takes symbols by position, then channel.
//   - The inputs of a context are kept as bytes [height + 2][width + 4][M] with their border, so that the 12 taps of a
//     position are three runs of memory.
//   - A batch is what passes through the layers together: one wavefront when decoding, as many as give the products
//     enough to do when all latents are known. Those that are rounded from their means are not, before their turn: what
//     is coded of y is d = (y - k + 8) >> 4, and what goes on is k + 16 d. Of models without a context it is a piece of
//     a group that stays in the cache, and nothing but the escapes waits for the end of the group.

#include "hyperprior/coder.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "core/aligned_buffer.h"
#include "core/tile_queue.h"

namespace l2c::hyperprior {
namespace {

constexpr int kZero = 128;  // the byte that stands for 0
constexpr int kMixtures = 3;
constexpr std::uint16_t kWeights[kMixtures] = {37346, 14087, 14087};  // of the middle and the outer logistics
constexpr int kMeanBits = 6;                                          // of a head's mean behind the point
constexpr int kSigmaLeast = 14, kSigmaMost = 32000;
constexpr int kMiddle = 153552, kOuter = 163391;  // inverse scales times sigma
constexpr int kEscapeDigit = 255, kMostDigits = 32;
constexpr std::uint16_t kDigitWeight = kWeightSum, kDigitInvScale = 16;
constexpr std::int16_t kDigitMean = -16384;

constexpr std::size_t kBatchPositions = 64;     // that share the products when encoding
constexpr std::size_t kPieceSymbols = 1 << 13;  // whose mixtures stay in the second-level cache
constexpr std::int64_t kMaxSide = std::int64_t{1} << 30;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 40;  // beyond any memory; keeps sizes far from overflow

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

struct Position {
    std::int64_t y, x;
};

// uint8 [rows][columns][pitch] with a border of one pixel of zeros on all sides.
class Image {
 public:
    void make(std::int64_t rows, std::int64_t columns, int pitch) {
        row_pitch_ = (columns + 2) * pitch;
        pitch_ = pitch;
        const std::size_t size = static_cast<std::size_t>((rows + 2) * row_pitch_);
        std::memset(memory_.reserve(size), 0, size);
    }
    std::uint8_t* at(std::int64_t y, std::int64_t x) const {
        return static_cast<std::uint8_t*>(memory_.data()) + (y + 1) * row_pitch_ + (x + 1) * pitch_;
    }
    std::ptrdiff_t row_pitch() const { return row_pitch_; }
    int pitch() const { return pitch_; }

 private:
    AlignedBuffer memory_;
    std::ptrdiff_t row_pitch_ = 0;
    int pitch_ = 0;
};

// [rows][columns] -> [columns][rows] in pieces that stay in the first-level cache; strides of rows in elements.
void transpose(const std::int16_t* from, std::int64_t from_row, std::int64_t rows, std::int64_t columns,
               std::int16_t* to, std::int64_t to_row) {
    constexpr std::int64_t kPiece = 32;
    for (std::int64_t y0 = 0; y0 < rows; y0 += kPiece) {
        const std::int64_t y1 = std::min(y0 + kPiece, rows);
        for (std::int64_t x0 = 0; x0 < columns; x0 += kPiece) {
            const std::int64_t x1 = std::min(x0 + kPiece, columns);
            for (std::int64_t x = x0; x < x1; ++x) {
                for (std::int64_t y = y0; y < y1; ++y) to[x * to_row + y] = from[y * from_row + x];
            }
        }
    }
}

// Mixtures of symbols, and what symbols are counted from; components are `stride` apart.
struct Mixtures {
    AlignedBuffer weights, means, inv_scales, from;
    std::size_t stride = 0;

    void reserve(std::size_t count) {
        if (count <= stride) return;
        stride = count;
        auto* w = static_cast<std::uint16_t*>(weights.reserve(kMixtures * count * sizeof(std::uint16_t)));
        for (std::uint16_t weight : kWeights) w = std::fill_n(w, count, weight);
        means.reserve(kMixtures * count * sizeof(std::int16_t));
        inv_scales.reserve(kMixtures * count * sizeof(std::uint16_t));
        from.reserve(count * sizeof(std::int16_t));
    }
    MixtureView view(std::size_t first) const {
        return {static_cast<const std::uint16_t*>(weights.data()) + first,
                static_cast<const std::int16_t*>(means.data()) + first,
                static_cast<const std::uint16_t*>(inv_scales.data()) + first,
                stride,
                kMixtures,
                8};
    }
};

// floor((a + floor(sigma / 2)) / sigma). Both are below 2^18 and exact as floats; a quotient that is no integer lies at
// least 1 / sigma, which is more than 2^-18 of it, below the next one, so rounding to 24 bits does not reach that.
inline std::uint16_t inverse_scale(int a, std::int32_t sigma) {
    return static_cast<std::uint16_t>(
        static_cast<std::int32_t>(static_cast<float>(a + (sigma >> 1)) / static_cast<float>(sigma)));
}

// Codes one tile.
class TileRun {
 public:
    TileRun(const Level& level, const Tile& tile, int threads, Cpu cpu)
        : level_(level),
          tile_(tile),
          threads_(threads),
          cpu_(cpu),
          plane_(tile.height * tile.width),
          used_(static_cast<std::size_t>(tile.used)),
          known_(tile.encodes && level.fraction() == 0) {}
    void run();

 private:
    void load_latents();
    void code_side();
    void run_hyper();
    void code_wavefronts();
    void code_heads();
    void code_tables();

    void start_taps();
    void update_taps(const Position& position);
    void run_layers(const std::vector<Position>& positions);
    void make_mixtures(const std::int16_t* head, std::size_t first);

    // A piece of a group: `count` positions from places_[first] on, whose symbols count from `from`, [count][used].
    // code(symbols, n) codes n symbols.
    template <class Code>
    void code_symbols(std::size_t first, std::size_t count, const std::int16_t* from, Code code);
    void code_mixtures(std::size_t first, std::size_t count);
    void code_escapes();  // at the end of a group

    std::int16_t* latents() const { return static_cast<std::int16_t*>(latents_.data()); }
    std::uint8_t* tap(std::int64_t y, std::int64_t x) const {
        return static_cast<std::uint8_t*>(taps_.data()) + (y * (tile_.width + 4) + x) * level_.channels();
    }
    // How many positions of a group without a context are coded in one piece.
    std::int64_t piece(std::int64_t positions, std::size_t channels) const {
        if (tile_.coder->whole_groups()) return positions;
        return std::clamp<std::int64_t>(static_cast<std::int64_t>(kPieceSymbols / channels), 1, positions);
    }

    const Level& level_;
    const Tile& tile_;
    const int threads_;
    const Cpu cpu_;
    const std::int64_t plane_;
    const std::size_t used_;
    const bool known_;       // whether all latents are, before they are coded
    AlignedBuffer latents_;  // int16 [height][width][used]
    Image images_[2];        // inputs of a layer of h_s and of the next one
    AlignedBuffer hyper_;    // what its last layer gives at [4 height'][4 width']: bytes [2 M], or heads
    std::int64_t hyper_columns_ = 0;
    AlignedBuffer taps_;  // uint8 [height + 2][width + 4][M]; position (y, x) is at (y + 2, x + 2)
    AlignedBuffer gathered_, joint_, hidden_[2], heads_, symbols_;
    Mixtures mixtures_;
    std::vector<std::int64_t> places_;    // of a piece's positions, counted along the rows
    std::vector<std::uint64_t> escapes_;  // 2 * index in latents_ + (1 where the latent is below the symbols)
    std::vector<std::int16_t> rests_;     // of the escapes, when encoding
};

void TileRun::run() {
    const int channels = level_.channels();
    std::memset(tile_.latents + used_ * static_cast<std::size_t>(plane_), 0,
                (static_cast<std::size_t>(channels) - used_) * static_cast<std::size_t>(plane_) * sizeof(std::int16_t));
    if (used_ == 0) return;
    load_latents();
    if (level_.kind() == Kind::kFactorized) {
        code_tables();
    } else {
        code_side();
        run_hyper();
        if (level_.kind() == Kind::kContext) {
            code_wavefronts();
        } else {
            code_heads();
        }
    }
    if (!known_) transpose(latents(), tile_.used, plane_, tile_.used, tile_.latents, plane_);
}

void TileRun::load_latents() {
    latents_.reserve(static_cast<std::size_t>(plane_) * used_ * sizeof(std::int16_t));
    if (!tile_.encodes) return;
    const std::int16_t* end = tile_.latents + static_cast<std::size_t>(plane_) * used_;
    const int most = level_.max_latent();
    if (std::any_of<const std::int16_t*>(tile_.latents, end, [=](int y) { return y < -most || y > most; })) {
        throw std::invalid_argument("a latent is beyond +-" + std::to_string(most));
    }
    transpose(tile_.latents, plane_, tile_.used, plane_, latents(), tile_.used);
}

// Codes z, and makes it the input of h_s: max(z, 0), then max(-z, 0).
void TileRun::code_side() {
    const int channels = level_.side_channels();
    const std::int64_t rows = ceil_div(tile_.height, kHyperStride), columns = ceil_div(tile_.width, kHyperStride);
    Image& image = images_[0];
    image.make(rows, columns, level_.hyper()[0].in_pitch);
    const std::int64_t most = piece(rows * columns, static_cast<std::size_t>(channels));
    const std::size_t room = static_cast<std::size_t>(most * channels);
    auto* symbols = static_cast<std::uint8_t*>(symbols_.reserve(room));
    std::vector<std::int32_t> indexes(room);
    for (std::size_t i = 0; i < room; ++i)
        indexes[i] = static_cast<std::int32_t>(i % static_cast<std::size_t>(channels));
    for (std::int64_t begin = 0; begin < rows * columns; begin += most) {
        const std::int64_t count = std::min(most, rows * columns - begin);
        if (tile_.encodes) {
            for (std::int64_t i = 0; i < count; ++i) {
                for (int c = 0; c < channels; ++c) {
                    symbols[i * channels + c] = tile_.side[c * rows * columns + begin + i];
                }
            }
        }
        tile_.coder->table(level_.side_tables(), indexes.data(), symbols, static_cast<std::size_t>(count * channels));
        for (std::int64_t i = 0; i < count; ++i) {
            const std::uint8_t* z = symbols + i * channels;
            std::uint8_t* to = image.at((begin + i) / columns, (begin + i) % columns);
            for (int c = 0; c < channels; ++c) {
                to[c] = static_cast<std::uint8_t>(std::max(z[c] - kZero, 0));
                to[channels + c] = static_cast<std::uint8_t>(std::max(kZero - z[c], 0));
            }
        }
    }
}

void TileRun::run_hyper() {
    std::int64_t rows = ceil_div(tile_.height, kHyperStride), columns = ceil_div(tile_.width, kHyperStride);
    for (std::size_t i = 0; i < level_.hyper().size(); ++i) {
        const HyperLayer& layer = level_.hyper()[i];
        const Image& in = images_[i % 2];
        IntConvArguments arguments = {};
        arguments.height = rows;
        arguments.width = columns;
        arguments.x = {in.at(0, 0), in.row_pitch(), in.pitch()};
        arguments.threads = threads_;
        arguments.x_readable = in.pitch();
        arguments.x_bordered = true;
        arguments.dense = true;
        const std::ptrdiff_t pitch = layer.out_pitch;
        if (i + 1 == level_.hyper().size()) {
            hyper_columns_ = columns;
            const std::size_t size = static_cast<std::size_t>(rows * columns * pitch);
            if (level_.kind() == Kind::kContext) {
                arguments.out_u8 = {static_cast<std::uint8_t*>(hyper_.reserve(size)), columns * pitch, pitch};
            } else {
                void* memory = hyper_.reserve(size * sizeof(std::int16_t));
                arguments.out_i16 = {static_cast<std::int16_t*>(memory), columns * pitch, pitch};
                arguments.out_channels = level_.head_size(tile_.used);
            }
            layer.parts[0]->run(arguments, cpu_);
            return;
        }
        Image& out = images_[(i + 1) % 2];
        if (layer.shuffle) {
            rows *= 2;
            columns *= 2;
            out.make(rows, columns, layer.out_pitch);
            for (int part = 0; part < 4; ++part) {  // its outputs at (y, x) are the pixel (2 y + dy, 2 x + dx)
                arguments.out_u8 = {out.at(part / 2, part % 2), 2 * out.row_pitch(), 2 * pitch};
                layer.parts[part]->run(arguments, cpu_);
            }
        } else {
            out.make(rows, columns, layer.out_pitch);
            arguments.out_u8 = {out.at(0, 0), out.row_pitch(), pitch};
            layer.parts[0]->run(arguments, cpu_);
        }
    }
}

void TileRun::code_wavefronts() {
    start_taps();
    const std::int64_t steps = tile_.width + 3 * (tile_.height - 1);
    std::vector<Position> positions;
    std::vector<std::size_t> ends;  // of the groups of a batch
    for (std::int64_t t = 0; t < steps;) {
        positions.clear();
        places_.clear();
        ends.clear();
        do {
            const std::int64_t first = t < tile_.width ? 0 : (t - tile_.width + 3) / 3;
            const std::int64_t last = std::min(tile_.height - 1, t / 3);
            for (std::int64_t y = first; y <= last; ++y) {
                positions.push_back({y, t - 3 * y});
                places_.push_back(y * tile_.width + t - 3 * y);
            }
            if (first <= last) ends.push_back(positions.size());  // a narrow tile has steps without a position
            ++t;
        } while (t < steps && (positions.empty() || (known_ && positions.size() < kBatchPositions)));
        run_layers(positions);
        std::size_t begin = 0;
        for (std::size_t end : ends) {
            code_mixtures(begin, end - begin);
            code_escapes();
            begin = end;
        }
        if (known_) continue;
        for (const Position& position : positions) update_taps(position);
    }
}

void TileRun::start_taps() {
    const std::size_t size = static_cast<std::size_t>((tile_.height + 2) * (tile_.width + 4) * level_.channels());
    std::memset(taps_.reserve(size), kZero, size);
    if (!known_) return;
    for (std::int64_t y = 0; y < tile_.height; ++y) {
        for (std::int64_t x = 0; x < tile_.width; ++x) update_taps({y, x});
    }
}

void TileRun::update_taps(const Position& position) {
    const std::int16_t* from = latents() + (position.y * tile_.width + position.x) * tile_.used;
    std::uint8_t* to = tap(position.y + 2, position.x + 2);
    if (!level_.shifts()) {
        for (std::size_t c = 0; c < used_; ++c) {
            const std::int16_t y = std::min<std::int16_t>(std::max<std::int16_t>(from[c], -kZero), kZero - 1);
            to[c] = static_cast<std::uint8_t>(y + kZero);
        }
        return;
    }
    // (y + half) >> shift = (2^(8 - shift) y + 128) >> 8, products of 16 bits and no shifts that differ
    const std::int16_t* factor = level_.tap_factor().data();
    for (std::size_t c = 0; c < used_; ++c) {
        const std::int32_t y = (from[c] * factor[c] + (1 << (kMaxShift - 1))) >> kMaxShift;
        to[c] = static_cast<std::uint8_t>(std::min(std::max(y, -kZero), kZero - 1) + kZero);
    }
}

// Heads and mixtures of some positions.
void TileRun::run_layers(const std::vector<Position>& positions) {
    const std::size_t channels = static_cast<std::size_t>(level_.channels()), n = positions.size();
    auto* gathered = static_cast<std::uint8_t*>(gathered_.reserve(n * kTaps * channels));
    auto* joint = static_cast<std::uint8_t*>(joint_.reserve(n * 4 * channels));
    for (std::size_t i = 0; i < n; ++i) {
        const Position& at = positions[i];
        std::uint8_t* to = gathered + i * kTaps * channels;
        std::memcpy(to, tap(at.y, at.x), 5 * channels);
        std::memcpy(to + 5 * channels, tap(at.y + 1, at.x), 5 * channels);
        std::memcpy(to + 10 * channels, tap(at.y + 2, at.x), 2 * channels);
        const auto* hyper = static_cast<const std::uint8_t*>(hyper_.data());
        std::memcpy(joint + i * 4 * channels,
                    hyper + static_cast<std::size_t>(at.y * hyper_columns_ + at.x) * 2 * channels, 2 * channels);
    }
    IntConvArguments arguments = {};
    arguments.height = 1;
    arguments.width = static_cast<std::int64_t>(n);
    arguments.threads = threads_;
    arguments.dense = true;
    // Pixels stand side by side: [n][pitch].
    const auto input = [&](const std::uint8_t* x, std::size_t pitch) {
        arguments.x = {x, static_cast<std::ptrdiff_t>(n * pitch), static_cast<std::ptrdiff_t>(pitch)};
        arguments.x_readable = static_cast<int>(pitch);
    };
    const auto output = [&](std::uint8_t* out, std::size_t pitch) {
        arguments.out_u8 = {out, static_cast<std::ptrdiff_t>(n * pitch), static_cast<std::ptrdiff_t>(pitch)};
    };
    input(gathered, kTaps * channels);
    output(joint + 2 * channels, 4 * channels);
    level_.context().run(arguments, cpu_);
    input(joint, 4 * channels);
    for (int i = 0; i < 2; ++i) {
        const IntConv& layer = level_.parameters(i);
        const std::size_t pitch = static_cast<std::size_t>(ceil_div(layer.out_channels(), 4) * 4);
        output(static_cast<std::uint8_t*>(hidden_[i].reserve(n * pitch)), pitch);
        layer.run(arguments, cpu_);
        input(static_cast<const std::uint8_t*>(hidden_[i].data()), pitch);
    }
    const int size = level_.head_size(tile_.used);
    auto* heads = static_cast<std::int16_t*>(heads_.reserve(n * static_cast<std::size_t>(size) * sizeof(std::int16_t)));
    arguments.out_u8 = {};
    arguments.out_i16 = {heads, static_cast<std::ptrdiff_t>(n) * size, size};
    arguments.out_channels = size;
    level_.parameters(2).run(arguments, cpu_);
    mixtures_.reserve(n * used_);
    for (std::size_t i = 0; i < n; ++i) make_mixtures(heads + i * static_cast<std::size_t>(size), i * used_);
}

// The mixtures of one position from its head, at `first` and what follows.
void TileRun::make_mixtures(const std::int16_t* head, std::size_t first) {
    auto* means = static_cast<std::int16_t*>(mixtures_.means.data()) + first;
    auto* inv_scales = static_cast<std::uint16_t*>(mixtures_.inv_scales.data()) + first;
    auto* from = static_cast<std::int16_t*>(mixtures_.from.data()) + first;
    const std::size_t stride = mixtures_.stride;
    const bool has_mean = level_.kind() != Kind::kScale;
    const int dropped = kMeanBits - level_.fraction(), half = (1 << dropped) >> 1;
    for (std::size_t c = 0; c < used_; c += kHeadBlock, head += level_.head_block()) {
        // Whole blocks in memory of their own, which compilers turn into vectors.
        std::int16_t k[kHeadBlock], mean[kMixtures][kHeadBlock];
        std::uint16_t scale[2][kHeadBlock];
        for (int i = 0; i < kHeadBlock; ++i) {
            const std::int32_t value = has_mean ? head[kHeadBlock + i] : 0, whole = (value + half) >> dropped;
            const std::int32_t sigma = std::min<std::int32_t>(std::max<std::int32_t>(head[i], kSigmaLeast), kSigmaMost);
            const std::int32_t centre = 2 * (value - whole * (1 << dropped));
            const std::int32_t distance = sigma + ((9 * sigma + 512) >> 10);  // (1033 sigma + 512) >> 10
            k[i] = static_cast<std::int16_t>(whole);
            mean[0][i] = static_cast<std::int16_t>(centre);
            mean[1][i] = static_cast<std::int16_t>(centre + distance);
            mean[2][i] = static_cast<std::int16_t>(centre - distance);
            scale[0][i] = inverse_scale(kMiddle, sigma);
            scale[1][i] = inverse_scale(kOuter, sigma);
        }
        const std::size_t size = std::min<std::size_t>(kHeadBlock, used_ - c) * sizeof(std::int16_t);
        std::memcpy(from + c, k, size);
        for (int j = 0; j < kMixtures; ++j) {
            std::memcpy(means + j * stride + c, mean[j], size);
            std::memcpy(inv_scales + j * stride + c, scale[j > 0], size);
        }
    }
}

void TileRun::code_heads() {
    const std::int64_t most = piece(plane_, used_);
    const std::ptrdiff_t pitch = level_.hyper().back().out_pitch;
    const auto* heads = static_cast<const std::int16_t*>(hyper_.data());
    mixtures_.reserve(static_cast<std::size_t>(most) * used_);
    for (std::int64_t begin = 0; begin < plane_; begin += most) {
        const std::int64_t count = std::min(most, plane_ - begin);
        places_.resize(static_cast<std::size_t>(count));
        std::iota(places_.begin(), places_.end(), begin);
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t y = (begin + i) / tile_.width, x = (begin + i) % tile_.width;
            make_mixtures(heads + (y * hyper_columns_ + x) * pitch, static_cast<std::size_t>(i) * used_);
        }
        code_mixtures(0, static_cast<std::size_t>(count));
    }
    code_escapes();
}

void TileRun::code_tables() {
    const std::int64_t most = piece(plane_, used_);
    std::vector<std::int32_t> indexes;
    std::vector<std::int16_t> from;
    for (std::int64_t i = 0; i < most; ++i) {
        for (std::int32_t c = 0; c < tile_.used; ++c) indexes.push_back(c);
        from.insert(from.end(), level_.offset().begin(), level_.offset().begin() + tile_.used);
    }
    for (std::int64_t begin = 0; begin < plane_; begin += most) {
        places_.resize(static_cast<std::size_t>(std::min(most, plane_ - begin)));
        std::iota(places_.begin(), places_.end(), begin);
        code_symbols(0, places_.size(), from.data(), [&](std::uint8_t* symbols, std::size_t n) {
            tile_.coder->table(level_.latent_tables(), indexes.data(), symbols, n);
        });
    }
    code_escapes();
}

void TileRun::code_mixtures(std::size_t first, std::size_t count) {
    const auto* from = static_cast<const std::int16_t*>(mixtures_.from.data()) + first * used_;
    code_symbols(first, count, from, [&](std::uint8_t* symbols, std::size_t n) {
        tile_.coder->mixture(mixtures_.view(first * used_), symbols, n);
    });
}

template <class Code>
void TileRun::code_symbols(std::size_t first, std::size_t count, const std::int16_t* from, Code code) {
    auto* symbols = static_cast<std::uint8_t*>(symbols_.reserve(count * used_));
    const auto row_of = [&](std::size_t i) { return latents() + places_[first + i] * tile_.used; };
    const int fraction = level_.fraction(), half = (1 << fraction) >> 1;
    for (std::size_t i = 0; tile_.encodes && i < count; ++i) {
        std::int16_t* row = row_of(i);
        const std::int16_t* base = from + i * used_;
        std::uint8_t* to = symbols + i * used_;
        for (std::size_t c = 0; c < used_; ++c) {  // all of it fits in 16 bits
            const auto d = static_cast<std::int16_t>(static_cast<std::int16_t>(row[c] - base[c] + half) >> fraction);
            const std::int16_t inside = std::min<std::int16_t>(std::max<std::int16_t>(d, -kZero), kZero - 1);
            to[c] = static_cast<std::uint8_t>(inside + kZero);
            row[c] = static_cast<std::int16_t>(base[c] + d * (1 << fraction));
        }
    }
    code(symbols, count * used_);
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint8_t* found = symbols + i * used_;
        const std::int16_t* base = from + i * used_;
        std::int16_t* row = row_of(i);
        for (std::size_t c = 0; !tile_.encodes && c < used_; ++c) {
            row[c] = static_cast<std::int16_t>(base[c] + (found[c] - kZero) * (1 << fraction));
        }
        bool any = false;
        for (std::size_t c = 0; c < used_; ++c) any |= found[c] == 0 || found[c] == 255;
        for (std::size_t c = 0; any && c < used_; ++c) {
            if (found[c] != 0 && found[c] != 255) continue;
            escapes_.push_back(2 * static_cast<std::uint64_t>(row + c - latents()) + (found[c] == 0));
            if (tile_.encodes) {
                const int d = (row[c] - base[c]) >> fraction;
                rests_.push_back(static_cast<std::int16_t>(std::abs(d - (found[c] - kZero))));
            }
        }
    }
}

void TileRun::code_escapes() {
    for (int round = 0; !escapes_.empty(); ++round) {
        if (round == kMostDigits) {
            throw BitstreamError("range coder: an escaped latent has more digits than any encoder writes");
        }
        const std::size_t n = escapes_.size();
        const std::size_t most = tile_.coder->whole_groups() ? n : std::min(n, kPieceSymbols);
        const std::vector<std::uint16_t> weights(most, kDigitWeight), inv_scales(most, kDigitInvScale);
        const std::vector<std::int16_t> means(most, kDigitMean);
        std::vector<std::uint8_t> digits(most);
        std::size_t left = 0;
        for (std::size_t begin = 0; begin < n; begin += most) {
            const std::size_t count = std::min(most, n - begin);
            for (std::size_t i = 0; tile_.encodes && i < count; ++i) {
                digits[i] = static_cast<std::uint8_t>(std::min<int>(rests_[begin + i], kEscapeDigit));
            }
            tile_.coder->mixture({weights.data(), means.data(), inv_scales.data(), most, 1, 8}, digits.data(), count);
            for (std::size_t i = 0; i < count; ++i) {
                const std::uint64_t escape = escapes_[begin + i];
                if (tile_.encodes) {
                    rests_[left] = static_cast<std::int16_t>(rests_[begin + i] - digits[i]);
                } else {
                    std::int16_t& y = latents()[escape / 2];
                    const int step = digits[i] * (1 << level_.fraction()), sum = escape % 2 != 0 ? y - step : y + step;
                    if (sum < -32768 || sum > 32767) throw BitstreamError("range coder: a latent is out of range");
                    y = static_cast<std::int16_t>(sum);
                }
                escapes_[left] = escape;
                left += digits[i] == kEscapeDigit;
            }
        }
        escapes_.resize(left);
        if (tile_.encodes) rests_.resize(left);
    }
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

void check(const Model& model, const Tile& tile) {
    require(tile.height >= 1 && tile.height <= kMaxSide && tile.width >= 1 && tile.width <= kMaxSide &&
                tile.height * tile.width <= kMaxPositions,
            "a tile must have at least one latent, and no side above 2^30");
    require(tile.level >= 0 && tile.level < model.num_levels(), "there is no such level");
    require(tile.used >= 0 && tile.used <= model.channels(), "the number of used channels must be 0..M");
    require(tile.coder != nullptr && tile.latents != nullptr, "a tile lacks its coder or latents");
    require(!tile.encodes || tile.side != nullptr || model.view(tile.level).kind == Kind::kFactorized,
            "a tile lacks its hyper-latents");
}

}  // namespace

void code_tiles(const Model& model, const std::vector<Tile>& tiles, int threads, Cpu cpu) {
    std::vector<std::int64_t> sizes;
    for (const Tile& tile : tiles) {
        check(model, tile);
        sizes.push_back(tile.used > 0 ? tile.height * tile.width : 0);
    }
    run_tiles(sizes, threads, [&](std::size_t i, int its_threads) {
        const Tile& tile = tiles[i];
        TileRun(model.level(tile.level), tile, its_threads, cpu).run();
    });
}

}  // namespace l2c::hyperprior
