// The entropy coder of L2C: interleaved rANS over integer models. Standard library only.
//
// ---- Stream ---------------------------------------------------------------------------------------------------------
//
//   offset        size       content
//   0             1          log2(lanes), 0..6; other values are illegal
//   1             6 * lanes  state of lane 0, 1, ..., little-endian, each in [2^32, 2^48)
//   1 + 6*lanes   2 * words  16-bit words, little-endian, in the order in which the decoder takes them
//
// Coder symbol j (counted from 0 over everything pushed, in push order) belongs to lane j % lanes. Every model maps a
// symbol to an interval [start, start + freq) of [0, 2^20). The decoder, on the state x of the symbol's lane:
//
//   slot = x % 2^20;  find the symbol with start <= slot < start + freq;  x = freq * floor(x / 2^20) + slot - start
//   while x < 2^32: x = 2^16 x + next word            (at most two words, since x >= 2^12)
//
// After the last symbol no word may be left, lane 0 must be at 2^32 + h and every other lane at 2^32, where h is the
// low 32 bits of XXH64 (seed 0) over the decoded symbols: one byte for each symbol of a mixture, four bytes
// (little-endian) for each of the others. The states alone would miss a flipped bit that turns a symbol into another
// one of the same frequency (all raw bits, for instance); h costs nothing, because a start value above 2^32 is as short
// as 2^32.
//
// ---- Models ---------------------------------------------------------------------------------------------------------
//
//   mixture   C(i) of mixture_cdf.h; symbols uint8.
//   table     row t of `cdf`: 0 = cdf[0] <= ... <= cdf[size - 1] = 2^precision; start and end times 2^(20 - precision).
//   uniform   size n <= 1024 or a power of two: start(s) = floor(2^20 s / n).
//             Any other n: with r = the least number with n <= 2^(10 + r), two coder symbols: s >> r out of
//             ceil(n / 2^r) with start(q) = floor(2^20 q 2^r / n) (end 2^20), then the low r bits as a uniform symbol
//             of size 2^r, or n % 2^r after the last q if that is not 0. Within 2 * 10^-6 bit of log2 n.
//   raw       b <= 16 bits: uniform of size 2^b. b = 17..32: the high b - 16 bits, then the low 16 bits.
//
// ---- Encoder --------------------------------------------------------------------------------------------------------
//
// push_* appends 5 bytes a symbol; finish() codes them from the last to the first and so knows h and the lane count
// from the start. The decoder checks bounds at every refill (SIMD kernels: after every row, with a margin that holds
// zeros), every state of the header, and the end conditions above.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "core/rans_kernels.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words and hashed symbols are read as little-endian");

namespace l2c {

// A stream is truncated, altered, or not what was pushed. Python sees l2c.errors.BitstreamError.
struct BitstreamError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline const Kernels& current_kernels() {
#if L2C_X86
    switch (current_cpu()) {
        case Cpu::kAvx512:
            return avx512_kernels();
        case Cpu::kAvx2:
            return avx2_kernels();
        case Cpu::kNeon:
        case Cpu::kScalar:
            break;
    }
#elif L2C_ARM64
    if (current_cpu() == Cpu::kNeon) return neon_kernels();
#endif
    return scalar_kernels();
}

// Throws std::invalid_argument for what the caller got wrong, BitstreamError for what the stream did.
inline void check_status(Status status) {
    switch (status) {
        case kOk:
            return;
        case kBadSymbol:
            throw std::invalid_argument("a symbol is not below 2^bits");
        case kBadWeights:
            throw std::invalid_argument("mixture weights of a symbol do not sum to 65520");
        case kBadScale:
            throw std::invalid_argument("an inverse scale is not in 1..32767");
        case kTruncated:
            throw BitstreamError("range coder: the stream ends too early");
    }
}

inline void check_view(const MixtureView& view) {
    if (view.num_mixtures < 1 || view.num_mixtures > kMaxMixtures) {
        throw std::invalid_argument("number of mixture components must be 1..8");
    }
    if (view.bits < 1 || view.bits > 8) throw std::invalid_argument("bits must be 1..8");
}

// XXH64, seed 0, of a byte string that comes in pieces (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
class Xxh64 {
 public:
    void update(const void* data, size_t size) {
        if (size == 0) return;  // `data` may be null
        const auto* bytes = static_cast<const unsigned char*>(data);
        total_ += size;
        if (pending_ > 0) {
            const size_t take = std::min(size, kStripe - pending_);
            std::memcpy(buffer_ + pending_, bytes, take);
            pending_ += take;
            bytes += take;
            size -= take;
            if (pending_ < kStripe) return;
            consume(buffer_, 1);
            pending_ = 0;
        }
        consume(bytes, size / kStripe);
        pending_ = size % kStripe;
        if (pending_ > 0) std::memcpy(buffer_, bytes + (size - pending_), pending_);
    }

    uint64_t digest() const {
        uint64_t h = kP5;
        if (total_ >= kStripe) {
            h = rotl(acc_[0], 1) + rotl(acc_[1], 7) + rotl(acc_[2], 12) + rotl(acc_[3], 18);
            for (uint64_t acc : acc_) h = (h ^ round(0, acc)) * kP1 + kP4;
        }
        h += total_;
        size_t i = 0;
        for (; i + 8 <= pending_; i += 8) h = rotl(h ^ round(0, load<uint64_t>(buffer_ + i)), 27) * kP1 + kP4;
        for (; i + 4 <= pending_; i += 4) h = rotl(h ^ (load<uint32_t>(buffer_ + i) * kP1), 23) * kP2 + kP3;
        for (; i < pending_; ++i) h = rotl(h ^ (buffer_[i] * kP5), 11) * kP1;
        h = (h ^ h >> 33) * kP2;
        h = (h ^ h >> 29) * kP3;
        return h ^ h >> 32;
    }

 private:
    static constexpr size_t kStripe = 32;
    static constexpr uint64_t kP1 = 0x9E3779B185EBCA87u, kP2 = 0xC2B2AE3D27D4EB4Fu, kP3 = 0x165667B19E3779F9u,
                              kP4 = 0x85EBCA77C2B2AE63u, kP5 = 0x27D4EB2F165667C5u;

    template <class T>
    static T load(const unsigned char* bytes) {
        T value;
        std::memcpy(&value, bytes, sizeof value);
        return value;
    }
    static uint64_t rotl(uint64_t x, int n) { return x << n | x >> (64 - n); }
    static uint64_t round(uint64_t acc, uint64_t word) { return rotl(acc + word * kP2, 31) * kP1; }

    void consume(const unsigned char* bytes, size_t stripes) {
        uint64_t a = acc_[0], b = acc_[1], c = acc_[2], d = acc_[3];
        for (; stripes > 0; --stripes, bytes += kStripe) {
            a = round(a, load<uint64_t>(bytes));
            b = round(b, load<uint64_t>(bytes + 8));
            c = round(c, load<uint64_t>(bytes + 16));
            d = round(d, load<uint64_t>(bytes + 24));
        }
        acc_[0] = a, acc_[1] = b, acc_[2] = c, acc_[3] = d;
    }

    uint64_t acc_[4] = {kP1 + kP2, kP2, 0, 0 - kP1};
    unsigned char buffer_[kStripe] = {};
    size_t pending_ = 0;
    uint64_t total_ = 0;
};

// `cdf` is [num_tables, row_length]; row t uses its first sizes[t] entries, so it has sizes[t] - 1 symbols.
struct TableView {
    const uint32_t* cdf;
    const int32_t* sizes;
    size_t num_tables;
    size_t row_length;
    int precision;  // 1..20

    // Throws std::invalid_argument unless every row is a cumulative table.
    void check() const {
        if (precision < 1 || precision > kProbabilityBits) throw std::invalid_argument("precision must be 1..20");
        for (size_t t = 0; t < num_tables; ++t) {
            if (sizes[t] < 2 || static_cast<size_t>(sizes[t]) > row_length) {
                throw std::invalid_argument("a cdf size is not in 2..row length");
            }
            const uint32_t* row = cdf + t * row_length;
            if (row[0] != 0 || row[sizes[t] - 1] != 1u << precision || !std::is_sorted(row, row + sizes[t])) {
                throw std::invalid_argument("a cdf row does not rise from 0 to 2^precision");
            }
        }
    }

    const uint32_t* row(int32_t t) const {
        if (t < 0 || static_cast<size_t>(t) >= num_tables) throw std::invalid_argument("a table index is out of range");
        return cdf + static_cast<size_t>(t) * row_length;
    }
};

// A uniform symbol as one or two digits (see the spec above).
struct UniformSplit {
    uint32_t size;
    int low_bits;     // r, 0 for a single digit
    uint32_t digits;  // number of values of the high digit

    explicit UniformSplit(uint32_t n) : size(n), low_bits(0), digits(n) {
        if (n < 1 || n > kProbabilityOne) throw std::invalid_argument("size of a uniform symbol must be 1..2^20");
        if (n > 1024 && (n & (n - 1)) != 0) {
            while ((n - 1) >> (10 + low_bits) != 0) ++low_bits;
            digits = ((n - 1) >> low_bits) + 1;
        }
    }

    // The high digit's cumulative frequency; q = digits gives 2^20.
    uint32_t start(uint32_t q) const {
        const uint64_t edge = std::min<uint64_t>(uint64_t{q} << low_bits, size);
        return static_cast<uint32_t>((edge << kProbabilityBits) / size);
    }
    // The q with start(q) <= slot < start(q + 1).
    uint32_t find(uint32_t slot) const {
        const uint64_t value =
            ((uint64_t{slot} + 1) * size - 1) >> kProbabilityBits;  // greatest s: floor(2^20 s/n) <= slot
        return static_cast<uint32_t>(value >> low_bits);
    }
    // Number of values of the low digit after q.
    uint32_t low_size(uint32_t q) const { return std::min(size - (q << low_bits), 1u << low_bits); }
};

class RangeEncoder {
 public:
    // Throws std::invalid_argument: bits, number of components, a symbol, weights or inverse scale out of range.
    void push_mixture(const MixtureView& view, const uint8_t* symbols, size_t n) {
        check_view(view);
        const Kernels& kernels = current_kernels();
        const size_t before = size_;
        for (size_t j = 0; j < n;) {
            Chunk& chunk = chunk_with_room();
            const size_t at = size_ % kChunkSize, count = std::min(n - j, kChunkSize - at);
            const Status status =
                kernels.mixture_intervals(skip(view, j), symbols + j, count, chunk.low + at, chunk.high + at);
            if (status != kOk) {
                size_ = before;
                check_status(status);
            }
            size_ += count;
            j += count;
        }
        hash_.update(symbols, n);
    }

    // Throws std::invalid_argument: tables, an index or a symbol out of range, or a symbol of frequency 0.
    void push_table(const TableView& tables, const int32_t* symbols, const int32_t* indexes, size_t n) {
        tables.check();
        const int shift = kProbabilityBits - tables.precision;
        const size_t before = size_;
        for (size_t j = 0; j < n; ++j) {
            const bool known = indexes[j] >= 0 && static_cast<size_t>(indexes[j]) < tables.num_tables;
            if (!known || symbols[j] < 0 || symbols[j] >= tables.sizes[indexes[j]] - 1) {
                size_ = before;
                throw std::invalid_argument(known ? "a symbol is outside its table" : "a table index is out of range");
            }
            const uint32_t* row = tables.row(indexes[j]) + symbols[j];
            if (row[0] == row[1]) {
                size_ = before;
                throw std::invalid_argument("a symbol has frequency 0 in its table");
            }
            append(row[0] << shift, (row[1] - row[0]) << shift);
        }
        hash_.update(symbols, 4 * n);
    }

    void push_uniform(const uint32_t* symbols, size_t n, uint32_t size) {
        const UniformSplit split(size);
        if (std::any_of(symbols, symbols + n, [size](uint32_t s) { return s >= size; })) {
            throw std::invalid_argument("a uniform symbol is not below size");
        }
        for (size_t j = 0; j < n; ++j) append_uniform(split, symbols[j]);
        hash_.update(symbols, 4 * n);
    }

    void push_raw(const uint32_t* values, size_t n, int num_bits) {
        if (num_bits < 0 || num_bits > 32) throw std::invalid_argument("num_bits must be 0..32");
        if (std::any_of(values, values + n, [num_bits](uint32_t v) { return uint64_t{v} >> num_bits != 0; })) {
            throw std::invalid_argument("a raw value does not fit in num_bits");
        }
        for (size_t j = 0; j < n; ++j) {
            if (num_bits > 16) append_bits(values[j] >> 16, num_bits - 16);
            append_bits(values[j] & 0xffff, std::min(num_bits, 16));
        }
        hash_.update(values, 4 * n);
    }

    // Coder symbols so far.
    size_t size() const { return size_; }

    // -sum log2(freq / 2^20) of everything pushed so far.
    double ideal_bits() const {
        double bits = 0;
        for (size_t j = 0; j < size_; ++j) {
            bits += kProbabilityBits - std::log2(static_cast<double>(freq_at(j)));
        }
        return bits;
    }

    // The largest power of two <= 64 whose flush (6 bytes a lane) is <= 0.3 % of the stream, at least 1. By integers
    // only: every machine must choose the same.
    int choose_lanes() const {
        // flush bits * 1000 <= 3 * bits; bits in 1/256.
        const auto enough_for = [](int lanes) { return uint64_t{48} * lanes * 1000 * 256 / 3; };
        uint64_t bits = 0;
        for (size_t j = 0; j < size_ && bits < enough_for(kMaxLanes); j += kChunkSize / 16) {
            const Chunk& chunk = *chunks_[j / kChunkSize];
            bits += estimate_bits(chunk, j % kChunkSize, std::min(size_ - j, kChunkSize / 16));
        }
        int lanes = 1;
        while (lanes < kMaxLanes && enough_for(2 * lanes) <= bits) lanes *= 2;
        return lanes;
    }

    // The stream. `lanes` is 0 (choose_lanes) or a power of two <= 64. The encoder is not changed.
    std::vector<uint8_t> finish(int lanes) const {
        if (lanes == 0) lanes = choose_lanes();
        if (lanes < 1 || lanes > kMaxLanes || (lanes & (lanes - 1)) != 0) {
            throw std::invalid_argument("lanes must be 0 or a power of two <= 64");
        }
        const Kernels& kernels = current_kernels();
        uint64_t states[kMaxLanes];
        std::fill(states, states + lanes, kStateLow);
        states[0] += hash_.digest() & 0xffffffff;

        const size_t room = 2 * kChunkSize + kWordMargin;
        const std::unique_ptr<uint16_t[]> buffer(new uint16_t[room]);
        std::vector<std::vector<uint16_t>> pieces;  // from the end of the stream to its front
        size_t num_words = 0;
        for (size_t c = (size_ + kChunkSize - 1) / kChunkSize; c-- > 0;) {
            const Chunk& chunk = *chunks_[c];
            size_t count = std::min(size_ - c * kChunkSize, kChunkSize);
            uint16_t* const end = buffer.get() + room;
            uint16_t* words = end;
            for (; count % lanes != 0; --count) {  // the last, incomplete row
                uint64_t& x = states[(count - 1) % lanes];
                x = encode_symbol(x, unpack_start(chunk.low[count - 1]),
                                  unpack_freq(chunk.low[count - 1], chunk.high[count - 1]), words);
            }
            words = kernels.encode_rows(chunk.low, chunk.high, count / lanes, lanes, states, words);
            pieces.emplace_back(words, end);
            num_words += static_cast<size_t>(end - words);
        }

        std::vector<uint8_t> stream(1 + 6 * static_cast<size_t>(lanes) + 2 * num_words);
        uint8_t* out = stream.data();
        *out = 0;
        while (1 << *out < lanes) ++*out;
        ++out;
        for (int lane = 0; lane < lanes; ++lane, out += 6) std::memcpy(out, &states[lane], 6);
        for (size_t i = pieces.size(); i-- > 0; out += 2 * pieces[i].size()) {
            if (!pieces[i].empty()) std::memcpy(out, pieces[i].data(), 2 * pieces[i].size());
        }
        return stream;
    }

 private:
    static constexpr size_t kChunkSize = 1 << 16;  // a multiple of the lanes, so that no row is split
    struct Chunk {
        uint32_t low[kChunkSize];
        uint8_t high[kChunkSize];
    };

    Chunk& chunk_with_room() {
        if (size_ / kChunkSize == chunks_.size()) chunks_.emplace_back(new Chunk);
        return *chunks_[size_ / kChunkSize];
    }
    void append(uint32_t start, uint32_t freq) {
        Chunk& chunk = chunk_with_room();
        chunk.low[size_ % kChunkSize] = pack_low(start, freq);
        chunk.high[size_ % kChunkSize] = pack_high(freq);
        ++size_;
    }
    void append_bits(uint32_t value, int num_bits) {
        append(value << (kProbabilityBits - num_bits), 1u << (kProbabilityBits - num_bits));
    }
    void append_uniform(const UniformSplit& split, uint32_t symbol) {
        const uint32_t q = symbol >> split.low_bits;
        append(split.start(q), split.start(q + 1) - split.start(q));
        if (split.low_bits > 0) {
            append_uniform(UniformSplit(split.low_size(q)), symbol & ((1u << split.low_bits) - 1));
        }
    }
    uint32_t freq_at(size_t j) const {
        const Chunk& chunk = *chunks_[j / kChunkSize];
        return unpack_freq(chunk.low[j % kChunkSize], chunk.high[j % kChunkSize]);
    }

    // About 256 * sum (20 - log2 freq), within 1 %, in integers: exponent and mantissa of freq (exact in float), and
    // log2(1 + m) = m + 0.344 m (1 - m).
    static uint64_t estimate_bits(const Chunk& chunk, size_t begin, size_t count) {
        uint32_t total = 0;  // count <= 2^12, each term <= 20 * 256
        for (size_t j = begin; j < begin + count; ++j) {
            const float freq = static_cast<float>(static_cast<int32_t>(unpack_freq(chunk.low[j], chunk.high[j])));
            uint32_t pattern;
            std::memcpy(&pattern, &freq, sizeof pattern);
            const uint32_t m = pattern >> 15 & 255;
            const uint32_t log2 = (pattern >> 15) - (127 << 8) + ((m * (256 - m) * 88) >> 16);
            total += (kProbabilityBits << 8) - log2;
        }
        return total;
    }

    std::vector<std::unique_ptr<Chunk>> chunks_;
    size_t size_ = 0;
    Xxh64 hash_;
};

// After an exception other than for arguments that were refused before the first symbol, a decoder only throws.
class RangeDecoder {
 public:
    // Copies the stream. Throws BitstreamError: header or size illegal.
    RangeDecoder(const uint8_t* data, size_t size) {
        if (size < 1) throw BitstreamError("range coder: the stream is empty");
        if (data[0] > 6) throw BitstreamError("range coder: the lane count is illegal");
        lanes_ = 1 << data[0];
        const size_t header = 1 + 6 * static_cast<size_t>(lanes_);
        if (size < header) throw BitstreamError("range coder: the stream ends within its lane states");
        if ((size - header) % 2 != 0) throw BitstreamError("range coder: the stream ends within a word");
        for (int lane = 0; lane < lanes_; ++lane) {
            states_[lane] = 0;
            std::memcpy(&states_[lane], data + 1 + 6 * lane, 6);
            if (states_[lane] < kStateLow) throw BitstreamError("range coder: a lane state is illegal");
        }
        num_words_ = (size - header) / 2;
        words_.resize(num_words_ + kWordMargin);
        if (num_words_ > 0) std::memcpy(words_.data(), data + header, 2 * num_words_);
        next_ = words_.data();
    }
    RangeDecoder(const RangeDecoder&) = delete;
    RangeDecoder& operator=(const RangeDecoder&) = delete;

    int lanes() const { return lanes_; }

    // Throws BitstreamError (truncated), std::invalid_argument (parameters out of range).
    void pop_mixture(const MixtureView& view, uint8_t* symbols, size_t n) {
        check_view(view);
        const Kernels& kernels = current_kernels();
        Attempt attempt(*this);
        constexpr size_t kPiece = 1 << 14;  // symbols still in cache when they are hashed
        for (size_t j = 0; j < n;) {
            size_t count = 1;
            if (lane_ == 0 && n - j >= static_cast<size_t>(lanes_)) {
                const size_t rows = std::min(n - j, kPiece) / lanes_;
                count = rows * lanes_;
                check_status(kernels.decode_mixture(skip(view, j), symbols + j, rows, lanes_, states_, &next_, end()));
            } else {
                symbols[j] = pop_mixture_symbol(view, j);
            }
            hash_.update(symbols + j, count);
            j += count;
        }
        attempt.succeeded();
    }

    void pop_table(const TableView& tables, const int32_t* indexes, int32_t* symbols, size_t n) {
        tables.check();
        Attempt attempt(*this);
        const int shift = kProbabilityBits - tables.precision;
        for (size_t j = 0; j < n; ++j) {
            const uint32_t* row = tables.row(indexes[j]);
            const uint32_t value = slot() >> shift;
            const uint32_t* above = std::upper_bound(row + 1, row + tables.sizes[indexes[j]] - 1, value);
            symbols[j] = static_cast<int32_t>(above - row) - 1;
            advance(above[-1] << shift, (above[0] - above[-1]) << shift);
        }
        hash_.update(symbols, 4 * n);
        attempt.succeeded();
    }

    void pop_uniform(uint32_t size, uint32_t* symbols, size_t n) {
        const UniformSplit split(size);
        Attempt attempt(*this);
        for (size_t j = 0; j < n; ++j) symbols[j] = pop_uniform_symbol(split);
        hash_.update(symbols, 4 * n);
        attempt.succeeded();
    }

    void pop_raw(int num_bits, uint32_t* values, size_t n) {
        if (num_bits < 0 || num_bits > 32) throw std::invalid_argument("num_bits must be 0..32");
        Attempt attempt(*this);
        for (size_t j = 0; j < n; ++j) {
            const uint32_t high = num_bits > 16 ? pop_bits(num_bits - 16) : 0;
            values[j] = high << 16 | pop_bits(std::min(num_bits, 16));
        }
        hash_.update(values, 4 * n);
        attempt.succeeded();
    }

    // Throws BitstreamError unless every word was used and every lane is at its start value.
    void finish() {
        Attempt attempt(*this);
        if (next_ != end()) throw BitstreamError("range coder: bytes are left after the last symbol");
        for (int lane = 0; lane < lanes_; ++lane) {
            const uint64_t start = kStateLow + (lane == 0 ? hash_.digest() & 0xffffffff : 0);
            if (states_[lane] != start)
                throw BitstreamError("range coder: the end state is wrong, the stream is damaged");
        }
        attempt.succeeded();
    }

 private:
    // Marks the decoder as failed until the operation has succeeded.
    struct Attempt {
        RangeDecoder& decoder;
        explicit Attempt(RangeDecoder& d) : decoder(d) {
            if (decoder.failed_) throw BitstreamError("range coder: this decoder has failed before");
            decoder.failed_ = true;
        }
        void succeeded() { decoder.failed_ = false; }
    };

    const uint16_t* end() const { return words_.data() + num_words_; }
    uint32_t slot() const { return static_cast<uint32_t>(states_[lane_]) & (kProbabilityOne - 1); }

    void advance(uint32_t start, uint32_t freq) {
        uint64_t& x = states_[lane_];
        x = decode_symbol(x, start, freq);
        if (!refill(x, next_, end())) check_status(kTruncated);
        lane_ = (lane_ + 1) & (lanes_ - 1);
    }

    uint8_t pop_mixture_symbol(const MixtureView& view, size_t j) {
        check_status(check_parameters(view, j));
        const uint32_t value = slot();
        uint32_t start = 0, end = kProbabilityOne;
        int i = 0;
        for (int step = 1 << (view.bits - 1); step > 0; step >>= 1) {
            const uint32_t edge = mixture_cdf_at(view, j, i + step);
            if (edge <= value) {
                i += step;
                start = edge;
            } else {
                end = edge;
            }
        }
        advance(start, end - start);
        return static_cast<uint8_t>(i);
    }

    uint32_t pop_uniform_symbol(const UniformSplit& split) {
        const uint32_t q = split.find(slot());
        advance(split.start(q), split.start(q + 1) - split.start(q));
        if (split.low_bits == 0) return q;
        return q << split.low_bits | pop_uniform_symbol(UniformSplit(split.low_size(q)));
    }

    uint32_t pop_bits(int num_bits) {
        const int shift = kProbabilityBits - num_bits;
        const uint32_t value = slot() >> shift;
        advance(value << shift, 1u << shift);
        return value;
    }

    int lanes_ = 1;
    int lane_ = 0;  // lane of the next symbol
    bool failed_ = false;
    uint64_t states_[kMaxLanes] = {};
    std::vector<uint16_t> words_;  // kWordMargin zeros follow the stream's words
    size_t num_words_ = 0;
    const uint16_t* next_ = nullptr;
    Xxh64 hash_;
};

}  // namespace l2c
