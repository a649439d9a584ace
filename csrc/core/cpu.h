// Which instruction set the coder and the integer convolution use; decided at run time.
//
// Order of preference: the name set with `set_cpu`, then the environment variable L2C_CPU (read at every call), then
// the best that this machine has. Names: "avx512" (F, BW, DQ, VL), "avx2", "neon" (every ARM64), "scalar".

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#define L2C_X86 1
#else
#define L2C_X86 0
#endif

#if defined(__aarch64__)
#define L2C_ARM64 1
#else
#define L2C_ARM64 0
#endif

#if L2C_ARM64 && defined(__linux__)
#include <sys/auxv.h>
#elif L2C_ARM64 && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace l2c {

// A path was asked for by name that this machine, or this build, does not have. Python sees l2c.errors.BackendError.
struct BackendError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Cpu : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kNeon = 3 };
constexpr int kNumCpus = 4;
constexpr Cpu kAllCpus[kNumCpus] = {Cpu::kScalar, Cpu::kAvx2, Cpu::kAvx512, Cpu::kNeon};

inline const char* cpu_name(Cpu cpu) {
    constexpr const char* kNames[kNumCpus] = {"scalar", "avx2", "avx512", "neon"};
    return kNames[static_cast<int>(cpu)];
}

inline bool cpu_has(Cpu cpu) {
#if L2C_X86
    if (cpu == Cpu::kAvx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    if (cpu == Cpu::kAvx2) return __builtin_cpu_supports("avx2");
#elif L2C_ARM64
    if (cpu == Cpu::kNeon) return true;
#endif
    return cpu == Cpu::kScalar;
}

// VNNI is no part of the "avx512" level above; code that needs it asks for it.
inline bool cpu_has_avx512_vnni() {
#if L2C_X86
    return cpu_has(Cpu::kAvx512) && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

// Nor are the products of four bytes (ARMv8.2) part of "neon".
inline bool cpu_has_neon_dot() {
#if L2C_ARM64 && defined(__linux__)
    constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
    static const bool found = (getauxval(AT_HWCAP) & kDotProducts) != 0;
    return found;
#elif L2C_ARM64 && defined(__APPLE__)
    static const bool found = [] {
        int value = 0;
        std::size_t size = sizeof(value);
        return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
    }();
    return found;
#else
    return false;
#endif
}

inline Cpu best_cpu() {
    static const Cpu best = [] {
        for (Cpu cpu : {Cpu::kAvx512, Cpu::kAvx2, Cpu::kNeon}) {
            if (cpu_has(cpu)) return cpu;
        }
        return Cpu::kScalar;
    }();
    return best;
}

// Throws BackendError: unknown name, or a path that this machine lacks.
inline Cpu parse_cpu(const std::string& name) {
    for (Cpu cpu : kAllCpus) {
        if (name != cpu_name(cpu)) continue;
        if (!cpu_has(cpu)) throw BackendError("this machine has no " + name);
        return cpu;
    }
    throw BackendError("unknown CPU path '" + name + "': expected avx512, avx2, neon or scalar");
}

inline std::atomic<int>& cpu_override() {
    static std::atomic<int> value{-1};
    return value;
}

// "" goes back to L2C_CPU and detection.
inline void set_cpu(const std::string& name) {
    cpu_override() = name.empty() ? -1 : static_cast<int>(parse_cpu(name));
}

inline Cpu current_cpu() {
    const int forced = cpu_override();
    if (forced >= 0) return static_cast<Cpu>(forced);
    const char* name = std::getenv("L2C_CPU");
    return name != nullptr && *name != '\0' ? parse_cpu(name) : best_cpu();
}

}  // namespace l2c
