// Read me first:
//   - The input of w1 is one buffer of cells (CellLayout) in unsigned bytes: int8 inputs have 128 added. The constant
//     planes are no inputs, they are folded into the bias of w1. w3 writes the next q into the buffer.
//   - h1 and h2 have a border of zeros, so that the 3x3 convolutions read them where they are.
//   - From the head on, a group passes in chunks of cells that stay in the second-level cache: head, parameters, coder,
//     fill. A chunk has a multiple of 64 cells, so that the coder sees whole rows of its lanes. With several threads,
//     parameters of later chunks are made while one thread codes an earlier one.
//   - The coder takes symbols by cell, then channel, the caller's planes hold them by channel, then position: they are
//     kept as [position][used channels] and turned at once, before (encoding) or after.

#include "multiscale/tile_coder.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "core/tile_queue.h"
#include "simd/int_conv_kernels.h"

namespace l2c {
namespace {

constexpr std::uint8_t kZero = 128;              // an input of w1 that is 0
constexpr std::uint8_t kAvailable = kZero + 16;  // AVAILABLE of l2c/ops/contract.py
constexpr std::int64_t kLaneCells = 64;          // chunks are multiples of it
constexpr std::int64_t kChunkBytes = 256 << 10;  // output of the head and parameters of a chunk
constexpr std::int64_t kMaxSide = std::int64_t{1} << 30;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 40;  // beyond any memory; keeps sizes far from overflow

// The cells of one group, where their latents are, and where the truth is filled in.
struct Group {
    std::int64_t rows, columns;            // cells that have the position
    std::int64_t y0, x0, step;             // cell (y, x) is the latent (y0 + y * step, x0 + x * step)
    int start, channels;                   // channels start .. start + channels - 1 are coded
    const IntConv* head;                   // reads q of the cells; null: the last scale
    const std::int16_t* prior;             // there: the head's output for every cell; null: equally likely symbols
    const std::uint8_t* q;                 // of cell (0, 0)
    std::uint8_t* values;                  // likewise, to fill in; or null
    std::ptrdiff_t row_pitch, cell_pitch;  // of q and values

    std::int64_t num_cells() const { return channels > 0 ? rows * columns : 0; }
    int head_blocks() const { return (channels + kHeadBlock - 1) / kHeadBlock; }
};

// A rectangle of cells; `first` counts the cells of the chunk before it.
struct Cells {
    std::int64_t y, rows, x, columns, first;
};

// Calls visit(Cells) for the cells begin .. end - 1, counted along the rows: at most three rectangles.
template <class Visit>
void visit_cells(std::int64_t columns, std::int64_t begin, std::int64_t end, Visit visit) {
    for (std::int64_t i = begin; i < end;) {
        const std::int64_t x = i % columns;
        const std::int64_t rows = x == 0 && end - i >= columns ? (end - i) / columns : 1;
        const Cells cells = {i / columns, rows, x, std::min(columns - x, end - i), i - begin};
        visit(cells);
        i += cells.rows * cells.columns;
    }
}

// 8x8 bytes: row i of `from` becomes column i of `to`. Strides in bytes.
inline void transpose8(const std::uint8_t* from, std::ptrdiff_t from_row, std::uint8_t* to, std::ptrdiff_t to_row) {
    std::uint64_t rows[8];
    for (int i = 0; i < 8; ++i) std::memcpy(&rows[i], from + i * from_row, 8);
    const auto swap = [&](int distance, int bits, std::uint64_t low) {  // 2x2 blocks of `distance` bytes
        for (int i = 0; i < 8; ++i) {
            if ((i & distance) != 0) continue;
            std::uint64_t &a = rows[i], &b = rows[i + distance];
            const std::uint64_t moved = ((a >> bits) ^ b) & low;
            b ^= moved;
            a ^= moved << bits;
        }
    };
    swap(4, 32, 0x00000000ffffffffu);
    swap(2, 16, 0x0000ffff0000ffffu);
    swap(1, 8, 0x00ff00ff00ff00ffu);
    for (int i = 0; i < 8; ++i) std::memcpy(to + i * to_row, &rows[i], 8);
}

// [rows][columns] -> [columns][rows], both contiguous, in pieces that stay in the first-level cache.
void transpose(const std::uint8_t* from, std::int64_t rows, std::int64_t columns, std::uint8_t* to) {
    constexpr std::int64_t kPiece = 64;
    const std::int64_t whole_columns = columns / 8 * 8;
    for (std::int64_t y0 = 0; y0 < rows; y0 += kPiece) {
        const std::int64_t y1 = std::min(y0 + kPiece, rows), whole_rows = y0 + (y1 - y0) / 8 * 8;
        for (std::int64_t x = 0; x < whole_columns; x += 8) {
            for (std::int64_t y = y0; y < whole_rows; y += 8) {
                transpose8(from + y * columns + x, columns, to + x * rows + y, rows);
            }
        }
        for (std::int64_t y = y0; y < y1; ++y) {
            const std::int64_t rest = y < whole_rows ? whole_columns : 0;
            for (std::int64_t x = rest; x < columns; ++x) to[x * rows + y] = from[y * columns + x];
        }
    }
}

// Buffers of one chunk.
struct Slot {
    AlignedBuffer raw, weights, means, inv_scales, symbols;
};

// All memory of a tile but the caller's.
struct Workspace {
    AlignedBuffer symbols;  // [height][width][used]
    AlignedBuffer cells[2], h1, h2, bias, known;
    std::vector<Slot> slots;

    std::size_t size() const {
        std::size_t sum = symbols.size() + cells[0].size() + cells[1].size() + h1.size() + h2.size() + known.size();
        for (const Slot& slot : slots) {
            sum += slot.raw.size() + slot.weights.size() + slot.means.size() + slot.inv_scales.size();
        }
        return sum;
    }
};

constexpr std::size_t kKeptBytes = 16 << 20;
// What a thread keeps for its next tile, up to kKeptBytes: fresh memory would cost a page fault every 4 kB.
thread_local std::unique_ptr<Workspace> kept_workspace;

// Chunks on several threads: work(chunk, slot) in any order, then consume(chunk, slot) one after another, on whichever
// thread is there. A slot belongs to a chunk until that is consumed.
template <class Work, class Consume>
class Pipeline {
 public:
    Pipeline(std::int64_t num_chunks, std::int64_t num_slots, Work work, Consume consume)
        : num_chunks_(num_chunks),
          num_slots_(num_slots),
          work_(work),
          consume_(consume),
          ready_(static_cast<std::size_t>(num_slots)) {
        for (auto& chunk : ready_) chunk = 0;
    }

    // Rethrows the first exception, after which no further chunk is started.
    void run(int threads) {
        parallel_for(
            threads, num_chunks_, [](void* self, std::int64_t chunk) { static_cast<Pipeline*>(self)->one(chunk); },
            this);
        if (error_) std::rethrow_exception(error_);
    }

 private:
    void one(std::int64_t chunk) {
        // The slot's last owner was started before this chunk, so another thread has it in hand, or it waits to be
        // consumed.
        while (!stopped_ && next_ + num_slots_ <= chunk) {
            consume_ready();
            std::this_thread::yield();
        }
        guarded([&] { work_(chunk, chunk % num_slots_); });
        ready_[static_cast<std::size_t>(chunk % num_slots_)] = chunk + 1;
        consume_ready();
    }

    // Nobody waits for the consumer. A thread that finds it busy leaves: the consumer looks again after it has stepped
    // down (every operation here is sequentially consistent).
    void consume_ready() {
        while (next_is_ready() && !busy_.exchange(true)) {
            while (next_is_ready()) {
                guarded([&] { consume_(next_, next_ % num_slots_); });
                ++next_;
            }
            busy_ = false;
        }
    }

    bool next_is_ready() const {
        const std::int64_t next = next_;
        return !stopped_ && next < num_chunks_ && ready_[static_cast<std::size_t>(next % num_slots_)] == next + 1;
    }

    template <class Call>
    void guarded(Call call) {
        if (stopped_) return;
        try {
            call();
        } catch (...) {
            if (!failed_.exchange(true)) error_ = std::current_exception();  // read when all threads are done
            stopped_ = true;
        }
    }

    const std::int64_t num_chunks_, num_slots_;
    Work work_;
    Consume consume_;
    std::vector<std::atomic<std::int64_t>> ready_;  // 1 + the chunk that a slot holds the parameters of
    std::atomic<std::int64_t> next_{0};             // chunk to consume
    std::atomic<bool> busy_{false}, failed_{false}, stopped_{false};
    std::exception_ptr error_;
};

// How often the hidden channels of each step were not zero.
struct Activity {
    std::vector<std::vector<std::int64_t>> h1, h2, q;

    explicit Activity(const TileModel& model) {
        const std::vector<std::int64_t> none(static_cast<std::size_t>(model.width()));
        h1.resize(static_cast<std::size_t>(model.num_steps()), none);
        h2 = q = h1;
    }
};

// Codes one tile.
class TileRun {
 public:
    TileRun(const TileModel& model, const Tile& tile, int threads, Cpu cpu, Workspace& memory);
    void run(Activity* activity = nullptr);

 private:
    struct Size {
        std::int64_t height, width;
    };
    // A step at a scale; moments are counted in the order of coding.
    struct Moment {
        int scale, step, position, group;
    };

    Moment moment(int number) const;
    Group group_at(const Moment& now) const;
    void start_scale(int scale);
    void run_layers(const Moment& now, Activity* activity);
    void count_active(const ImageView<std::uint8_t>& image, int scale, std::vector<std::int64_t>& counts) const;
    void fill_availability(const Moment& now);
    void code_last_scale();

    void code_group(const Group& group);
    std::int64_t chunk_cells(const Group& group) const;
    void make_parameters(const Group& group, std::int64_t begin, std::int64_t end, Slot& slot) const;
    void code_chunk(const Group& group, std::int64_t begin, std::int64_t end, Slot& slot) const;
    template <class Visit>
    void visit_symbols(const Group& group, std::int64_t begin, std::int64_t end, Visit visit) const;

    std::uint8_t* cells(int scale) const { return static_cast<std::uint8_t*>(memory_.cells[scale % 2].data()); }
    std::int64_t rows(int scale) const { return sizes_[scale + 1].height; }  // of cells
    std::int64_t columns(int scale) const { return sizes_[scale + 1].width; }
    // How many of them, from the first on, have a position.
    std::int64_t rows_with(int scale, int position) const { return (sizes_[scale].height + 1 - position / 2) / 2; }
    std::int64_t columns_with(int scale, int position) const { return (sizes_[scale].width + 1 - position % 2) / 2; }
    std::ptrdiff_t h_row(int scale) const { return (columns(scale) + 2) * model_.q_pitch(); }  // of h1 and h2

    const TileModel& model_;
    const Tile& tile_;
    const int threads_;
    const Cpu cpu_;
    const CellLayout layout_;
    std::vector<Size> sizes_;   // of z^(0) .. z^(M)
    std::uint8_t inputs_[256];  // of w1, by symbol
    std::uint8_t neutral_;      // the input for a latent of 0
    Workspace& memory_;
};

// Runs one tile in the memory that the thread kept from its last one.
void run_tile(const TileModel& model, const Tile& tile, int threads, Cpu cpu, Activity* activity = nullptr) {
    std::unique_ptr<Workspace> memory = std::move(kept_workspace);  // a coder that codes another tile finds none
    if (memory == nullptr) memory = std::make_unique<Workspace>();
    TileRun(model, tile, threads, cpu, *memory).run(activity);
    if (memory->size() <= kKeptBytes) kept_workspace = std::move(memory);
}

TileRun::TileRun(const TileModel& model, const Tile& tile, int threads, Cpu cpu, Workspace& memory)
    : model_(model), tile_(tile), threads_(threads), cpu_(cpu), layout_(model.layout(tile.used)), memory_(memory) {
    sizes_.push_back({tile.height, tile.width});
    for (int scale = 0; scale < model.num_scales(); ++scale) {
        sizes_.push_back({(sizes_.back().height + 1) / 2, (sizes_.back().width + 1) / 2});
    }
    const int zero = 1 << (tile.bits - 1);
    neutral_ = static_cast<std::uint8_t>(model.compand()[128] + kZero);
    std::fill(inputs_, inputs_ + 256, neutral_);
    for (int symbol = 0; symbol < 2 * zero; ++symbol) {
        const int latent = (symbol - zero) * (1 << (8 - tile.bits));
        inputs_[symbol] = static_cast<std::uint8_t>(model.compand()[latent + 128] + kZero);
    }
}

void TileRun::run(Activity* activity) {
    const std::int64_t plane = tile_.height * tile_.width, size = plane * tile_.used;
    std::memset(tile_.symbols + size, 1 << (tile_.bits - 1),
                static_cast<std::size_t>(plane * model_.channels() - size));
    if (tile_.used == 0) return;
    auto* symbols = static_cast<std::uint8_t*>(memory_.symbols.reserve(static_cast<std::size_t>(size)));
    if (tile_.encodes) transpose(tile_.symbols, tile_.used, plane, symbols);
    code_last_scale();
    int end = model_.num_scales() * model_.num_steps();
    while (end > 0 && group_at(moment(end - 1)).num_cells() == 0) --end;
    for (int number = 0; number < end; ++number) {
        const Moment now = moment(number);
        if (now.step == 0) start_scale(now.scale);
        run_layers(now, activity);
        Group group = group_at(now);
        group.head = &model_.w4(now.step);
        group.q = cells(now.scale) + layout_.q;
        if (number + 1 < end) {
            group.values = cells(now.scale) + now.position * layout_.value_pitch + group.start;
            fill_availability(now);
        }
        code_group(group);
    }
    if (!tile_.encodes) transpose(symbols, plane, tile_.used, tile_.symbols);
}

TileRun::Moment TileRun::moment(int number) const {
    const int step = number % model_.num_steps(), groups = model_.num_groups();
    return {model_.num_scales() - 1 - number / model_.num_steps(), step, kCodingOrder[step / groups], step % groups};
}

Group TileRun::group_at(const Moment& now) const {
    Group group = {};
    group.rows = rows_with(now.scale, now.position);
    group.columns = columns_with(now.scale, now.position);
    group.y0 = std::int64_t{now.position / 2} << now.scale;
    group.x0 = std::int64_t{now.position % 2} << now.scale;
    group.step = std::int64_t{2} << now.scale;
    group.start = model_.group_start(now.group);
    group.channels = model_.group_used(now.group, tile_.used);
    group.row_pitch = columns(now.scale) * layout_.pitch;
    group.cell_pitch = layout_.pitch;
    return group;
}

// Codes z^(M), and keeps its inputs in memory_.known, [rows, columns, value_pitch].
void TileRun::code_last_scale() {
    const int last = model_.num_scales();
    Group group = {};
    group.rows = sizes_[last].height;
    group.columns = sizes_[last].width;
    group.step = std::int64_t{1} << last;
    group.channels = tile_.used;
    group.cell_pitch = layout_.value_pitch;
    group.row_pitch = group.columns * group.cell_pitch;
    const std::size_t size = static_cast<std::size_t>(group.rows * group.row_pitch);
    group.values = static_cast<std::uint8_t*>(memory_.known.reserve(size));
    std::memset(group.values, neutral_, size);

    std::vector<std::uint8_t> h(static_cast<std::size_t>(model_.width()));
    std::vector<std::int16_t> prior;
    if (model_.learned_prior()) {
        IntConvArguments arguments = {};
        arguments.height = arguments.width = arguments.threads = 1;
        arguments.x = {tile_.planes + last * model_.num_planes(), model_.num_planes(), model_.num_planes()};
        arguments.out_u8 = {h.data(), model_.width(), model_.width()};
        model_.prior_w1().run(arguments, cpu_);
        arguments.out_channels = group.head_blocks() * 3 * model_.num_mixtures() * kHeadBlock;
        prior.resize(static_cast<std::size_t>(arguments.out_channels));
        arguments.x = {h.data(), model_.width(), model_.width()};
        arguments.out_u8 = {};
        arguments.out_i16 = {prior.data(), arguments.out_channels, arguments.out_channels};
        model_.prior_w2().run(arguments, cpu_);
        group.prior = prior.data();
    }
    code_group(group);
}

// Fills the input of w1 with what the coarser scale knows, and zeros h1 and h2 for their border and padding.
void TileRun::start_scale(int scale) {
    const std::int64_t rows = this->rows(scale), columns = this->columns(scale);
    const std::size_t value_pitch = static_cast<std::size_t>(layout_.value_pitch);
    const std::size_t q_pitch = static_cast<std::size_t>(model_.q_pitch());
    const std::size_t num_available = static_cast<std::size_t>(kPositions * model_.num_groups());
    const std::size_t known_positions = static_cast<std::size_t>(model_.num_groups());
    const bool coarsest = scale + 1 == model_.num_scales();
    memory_.cells[scale % 2].reserve(static_cast<std::size_t>(rows * columns * layout_.pitch));
    for (std::int64_t y = 0; y < rows; ++y) {
        std::uint8_t* to = cells(scale) + y * columns * layout_.pitch;
        for (std::int64_t x = 0; x < columns; ++x, to += layout_.pitch) {
            const std::uint8_t *values, *q = nullptr;
            if (coarsest) {
                values = static_cast<std::uint8_t*>(memory_.known.data()) + (y * columns + x) * layout_.value_pitch;
            } else {  // z^(scale + 1) lies in the cells of the scale before
                const std::uint8_t* from =
                    cells(scale + 1) + (y / 2 * this->columns(scale + 1) + x / 2) * layout_.pitch;
                values = from + (y % 2 * 2 + x % 2) * layout_.value_pitch;
                q = from + layout_.q;
            }
            for (int p = 0; p < kPositions; ++p) {
                std::uint8_t* part = to + p * layout_.value_pitch;
                if (y < rows_with(scale, p) && x < columns_with(scale, p)) {
                    std::memcpy(part, values, value_pitch);
                } else {
                    std::memset(part, kZero, value_pitch);
                }
            }
            std::memset(to + layout_.available, kZero, num_available);
            std::memset(to + layout_.available, kAvailable, known_positions);
            if (q != nullptr) {
                std::memcpy(to + layout_.q, q, q_pitch);
            } else {
                std::memset(to + layout_.q, 0, q_pitch);
            }
        }
    }
    for (AlignedBuffer* h : {&memory_.h1, &memory_.h2}) {
        const std::size_t size = static_cast<std::size_t>((rows + 2) * h_row(scale));
        std::memset(h->reserve(size), 0, size);
    }
}

// w1, w2 and w3: q becomes the next q.
void TileRun::run_layers(const Moment& now, Activity* activity) {
    const std::ptrdiff_t q_pitch = model_.q_pitch(), first_pixel = h_row(now.scale) + q_pitch;
    const auto image = [&](const AlignedBuffer& buffer) {
        auto* data = static_cast<std::uint8_t*>(buffer.data()) + first_pixel;
        return ImageView<std::uint8_t>{data, h_row(now.scale), q_pitch};
    };
    const ImageView<std::uint8_t> h1 = image(memory_.h1), h2 = image(memory_.h2);
    const std::ptrdiff_t row_pitch = columns(now.scale) * layout_.pitch;
    const std::size_t width = static_cast<std::size_t>(model_.width());
    void* bias = memory_.bias.reserve((width + kConvBlock) * sizeof(std::int32_t));
    std::memset(bias, 0, (width + kConvBlock) * sizeof(std::int32_t));
    model_.first_bias(now.step, tile_.planes + now.scale * model_.num_planes(), static_cast<std::int32_t*>(bias));

    IntConvArguments arguments = {};
    arguments.height = rows(now.scale);
    arguments.width = columns(now.scale);
    arguments.threads = threads_;
    arguments.x = {cells(now.scale), row_pitch, layout_.pitch};
    arguments.bias = static_cast<const std::int32_t*>(bias);
    arguments.out_u8 = h1;
    model_.w1(now.step, tile_.used).run(arguments, cpu_);

    arguments.bias = nullptr;
    arguments.x = {h1.data, h1.row_stride, h1.pixel_stride};
    arguments.x_readable = model_.q_pitch();
    arguments.x_bordered = true;
    arguments.out_u8 = h2;
    model_.w2(now.step).run(arguments, cpu_);

    arguments.x = {h2.data, h2.row_stride, h2.pixel_stride};
    arguments.residual = {h1.data, h1.row_stride, h1.pixel_stride};
    arguments.out_u8 = {cells(now.scale) + layout_.q, row_pitch, layout_.pitch};
    model_.w3(now.step).run(arguments, cpu_);
    if (activity != nullptr) {
        const std::size_t step = static_cast<std::size_t>(now.step);
        count_active(h1, now.scale, activity->h1[step]);
        count_active(h2, now.scale, activity->h2[step]);
        count_active(arguments.out_u8, now.scale, activity->q[step]);
    }
}

void TileRun::count_active(const ImageView<std::uint8_t>& image, int scale, std::vector<std::int64_t>& counts) const {
    for (std::int64_t y = 0; y < rows(scale); ++y) {
        for (std::int64_t x = 0; x < columns(scale); ++x) {
            const std::uint8_t* pixel = image.data + y * image.row_stride + x * image.pixel_stride;
            for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += pixel[i] != 0;
        }
    }
}

void TileRun::fill_availability(const Moment& now) {
    const std::int64_t columns = columns_with(now.scale, now.position);
    std::uint8_t* plane = cells(now.scale) + layout_.available + now.position * model_.num_groups() + now.group;
    for (std::int64_t y = 0; y < rows_with(now.scale, now.position); ++y) {
        std::uint8_t* to = plane + y * this->columns(now.scale) * layout_.pitch;
        for (std::int64_t x = 0; x < columns; ++x) to[x * layout_.pitch] = kAvailable;
    }
}

std::int64_t TileRun::chunk_cells(const Group& group) const {
    if (tile_.coder->whole_groups()) return group.num_cells();
    const std::int64_t bytes = std::int64_t{12} * model_.num_mixtures() * kHeadBlock * group.head_blocks();
    std::int64_t cells = kChunkBytes / bytes;
    if (threads_ > 1) cells = std::min(cells, group.num_cells() / (4 * threads_));
    return std::max(cells / kLaneCells, std::int64_t{1}) * kLaneCells;
}

void TileRun::code_group(const Group& group) {
    if (group.num_cells() == 0) return;
    const std::int64_t cells = chunk_cells(group), num_chunks = (group.num_cells() + cells - 1) / cells;
    const auto end_of = [&](std::int64_t chunk) { return std::min((chunk + 1) * cells, group.num_cells()); };
    const auto work = [&](std::int64_t chunk, std::int64_t slot) {
        make_parameters(group, chunk * cells, end_of(chunk), memory_.slots[static_cast<std::size_t>(slot)]);
    };
    const auto consume = [&](std::int64_t chunk, std::int64_t slot) {
        code_chunk(group, chunk * cells, end_of(chunk), memory_.slots[static_cast<std::size_t>(slot)]);
    };
    const std::int64_t num_slots = threads_ > 1 ? std::min(num_chunks, std::int64_t{2} * threads_) : 1;
    if (memory_.slots.size() < static_cast<std::size_t>(num_slots)) {
        memory_.slots.resize(static_cast<std::size_t>(num_slots));
    }
    if (num_slots > 1) {
        Pipeline<decltype(work), decltype(consume)>(num_chunks, num_slots, work, consume).run(threads_);
        return;
    }
    for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        work(chunk, 0);
        consume(chunk, 0);
    }
}

// Mixture parameters of cells begin .. end - 1, [K][cells * channels].
void TileRun::make_parameters(const Group& group, std::int64_t begin, std::int64_t end, Slot& slot) const {
    if (group.head == nullptr && group.prior == nullptr) return;
    const std::size_t num_cells = static_cast<std::size_t>(end - begin);
    const std::size_t n = num_cells * static_cast<std::size_t>(group.channels);
    const std::size_t mixtures = static_cast<std::size_t>(model_.num_mixtures());
    const int pitch = group.head_blocks() * 3 * model_.num_mixtures() * kHeadBlock;
    auto* raw = static_cast<std::int16_t*>(slot.raw.reserve(num_cells * pitch * sizeof(std::int16_t)));
    if (group.head == nullptr) {
        for (std::size_t i = 0; i < num_cells; ++i) std::copy_n(group.prior, pitch, raw + i * pitch);
    } else {
        // Where no cell is left out, the rows are one.
        const bool joined = group.columns * group.cell_pitch == group.row_pitch;
        visit_cells(joined ? group.num_cells() : group.columns, begin, end, [&](const Cells& cells) {
            IntConvArguments arguments = {};
            arguments.height = cells.rows;
            arguments.width = cells.columns;
            arguments.threads = 1;
            arguments.x = {group.q + cells.y * group.row_pitch + cells.x * group.cell_pitch, group.row_pitch,
                           group.cell_pitch};
            arguments.x_readable = model_.q_pitch();
            arguments.out_i16 = {raw + cells.first * pitch, cells.columns * pitch, pitch};
            arguments.out_channels = pitch;
            group.head->run(arguments, cpu_);
        });
    }
    const ParamsJob job = {raw,
                           num_cells,
                           model_.num_mixtures(),
                           static_cast<std::size_t>(group.channels),
                           model_.exp_table(),
                           model_.inv_scales(),
                           nullptr,
                           static_cast<std::uint16_t*>(slot.weights.reserve(mixtures * n * sizeof(std::uint16_t))),
                           static_cast<std::int16_t*>(slot.means.reserve(mixtures * n * sizeof(std::int16_t))),
                           static_cast<std::uint16_t*>(slot.inv_scales.reserve(mixtures * n * sizeof(std::uint16_t))),
                           n,
                           kHeadBlock};
    current_kernels().mixture_params(job);
}

// Codes the symbols of cells begin .. end - 1 and fills them in.
void TileRun::code_chunk(const Group& group, std::int64_t begin, std::int64_t end, Slot& slot) const {
    const std::size_t channels = static_cast<std::size_t>(group.channels);
    const std::size_t n = static_cast<std::size_t>(end - begin) * channels;
    auto* symbols = static_cast<std::uint8_t*>(slot.symbols.reserve(n));
    if (tile_.encodes) {
        visit_symbols(group, begin, end, [&](std::int64_t cell, const std::uint8_t* latents, std::ptrdiff_t) {
            std::memcpy(symbols + cell * group.channels, latents, channels);
        });
    }
    if (group.head == nullptr && group.prior == nullptr) {
        tile_.coder->uniform(symbols, n, tile_.bits);
    } else {
        const MixtureView view = {static_cast<const std::uint16_t*>(slot.weights.data()),
                                  static_cast<const std::int16_t*>(slot.means.data()),
                                  static_cast<const std::uint16_t*>(slot.inv_scales.data()),
                                  n,
                                  model_.num_mixtures(),
                                  tile_.bits};
        tile_.coder->mixture(view, symbols, n);
    }
    visit_symbols(group, begin, end, [&](std::int64_t cell, std::uint8_t* latents, std::ptrdiff_t offset) {
        const std::uint8_t* from = symbols + cell * group.channels;
        if (!tile_.encodes) std::memcpy(latents, from, channels);
        if (group.values == nullptr) return;
        std::uint8_t* to = group.values + offset;
        for (std::size_t i = 0; i < channels; ++i) to[i] = inputs_[from[i]];
    });
}

// Calls visit(number of the cell in the chunk, its symbols in the workspace, its offset in group.values) for the cells
// begin .. end - 1.
template <class Visit>
void TileRun::visit_symbols(const Group& group, std::int64_t begin, std::int64_t end, Visit visit) const {
    auto* symbols = static_cast<std::uint8_t*>(memory_.symbols.data()) + group.start;
    visit_cells(group.columns, begin, end, [&](const Cells& cells) {
        for (std::int64_t y = 0; y < cells.rows; ++y) {
            const std::int64_t row = (group.y0 + (cells.y + y) * group.step) * tile_.width;
            for (std::int64_t x = 0; x < cells.columns; ++x) {
                visit(cells.first + y * cells.columns + x,
                      symbols + (row + group.x0 + (cells.x + x) * group.step) * tile_.used,
                      (cells.y + y) * group.row_pitch + (cells.x + x) * group.cell_pitch);
            }
        }
    });
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

void check(const TileModel& model, const Tile& tile) {
    require(tile.height >= 1 && tile.height <= kMaxSide && tile.width >= 1 && tile.width <= kMaxSide &&
                tile.height * tile.width <= kMaxPositions,
            "a tile must have at least one latent, and no side above 2^30");
    require(tile.bits >= 1 && tile.bits <= 8, "bits must be 1..8");
    require(tile.used >= 0 && tile.used <= model.channels(), "the number of used channels must be 0..c");
    require(tile.coder != nullptr && tile.planes != nullptr && tile.symbols != nullptr,
            "a tile lacks its coder, planes or symbols");
}

std::vector<int> by_falling(const std::vector<std::int64_t>& values) {
    std::vector<int> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
    });
    return order;
}

// A stream of noise, long enough for most models.
std::vector<std::uint8_t> noise(std::size_t size) {
    std::vector<std::uint8_t> stream(size | 1);
    std::uint32_t state = 1;
    for (std::uint8_t& byte : stream) {
        state = state * 1664525 + 1013904223;  // Numerical Recipes' generator
        byte = static_cast<std::uint8_t>(state >> 24);
    }
    constexpr int kLog2Lanes = 3;
    stream[0] = kLog2Lanes;
    for (int lane = 0; lane < 1 << kLog2Lanes; ++lane) stream[static_cast<std::size_t>(1 + 6 * lane + 5)] |= 1;
    return stream;
}

}  // namespace

ChannelOrders choose_orders(const TileModel& model, const std::vector<const std::uint8_t*>& planes, Cpu cpu) {
    constexpr std::int64_t kSide = 32;
    const std::size_t size = static_cast<std::size_t>(kSide * kSide * model.channels());
    const std::vector<std::uint8_t> stream = noise(size + 64);
    std::vector<std::uint8_t> symbols(size);
    Activity activity(model);
    for (const std::uint8_t* constant : planes) {
        RangeDecoder decoder(stream.data(), stream.size());
        DecodingCoder coder(decoder);
        const Tile tile = {kSide, kSide, 8, model.channels(), constant, &coder, false, symbols.data()};
        try {
            run_tile(model, tile, 1, cpu, &activity);
        } catch (const BitstreamError&) {  // what was counted before the stream ended is enough
        }
    }
    ChannelOrders orders;
    for (int step = 0; step < model.num_steps(); ++step) {
        const std::size_t i = static_cast<std::size_t>(step);
        // By the products that a zero saves: h1 goes to w2, q to w4 and the next w1.
        std::vector<std::int64_t> saved(activity.h1[i].size());
        for (std::size_t channel = 0; channel < saved.size(); ++channel) {
            saved[channel] = activity.h1[i][channel] * 9 * model.width() +
                             activity.q[i][channel] * (model.w4(step).out_channels() + model.width());
        }
        orders.q.push_back(by_falling(saved));
        orders.h2.push_back(by_falling(activity.h2[i]));
    }
    return orders;
}

void code_tiles(const TileModel& model, const std::vector<Tile>& tiles, int threads, Cpu cpu) {
    std::vector<std::int64_t> sizes;
    for (const Tile& tile : tiles) {
        check(model, tile);
        sizes.push_back(tile.used > 0 ? tile.height * tile.width : 0);
    }
    run_tiles(sizes, threads, [&](std::size_t i, int its_threads) { run_tile(model, tiles[i], its_threads, cpu); });
}

}  // namespace l2c
