// What a CUDA C file needs to compile with g++ and to run on the CPU; runtime.cpp schedules the
// threads. Nothing of the standard library is included: many small builds have to be fast.
#pragma once

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Blocks run one after another, so one copy serves them all. Thread-local variables lie side by
// side, so that runtime.cpp can fill them with garbage before every block; but AddressSanitizer
// guards only ordinary ones.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

// Vectors, aligned as CUDA aligns them: UndefinedBehaviorSanitizer finds misaligned ones.
#define CUDA_HOST_VECTORS(type, name)                                           \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                    \
    struct name##3 { type x, y, z; };                                           \
    struct alignas(16) name##4 { type x, y, z, w; };                            \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_HOST_VECTORS(int, int)
CUDA_HOST_VECTORS(unsigned, uint)
CUDA_HOST_VECTORS(float, float)
CUDA_HOST_VECTORS(long long, longlong)
CUDA_HOST_VECTORS(unsigned long long, ulonglong)
CUDA_HOST_VECTORS(double, double)

extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// What runtime.cpp provides.
void cuda_host_preemption_point();
void cuda_host_sleep();
int cuda_host_barrier(bool predicate, const char* name, int line);
int cuda_host_lane();
unsigned long long cuda_host_shuffle(unsigned mask, unsigned long long value, int size, int source,
                                     const char* name, int line);
unsigned cuda_host_vote(unsigned mask, bool predicate, const char* name, int line);
[[noreturn]] void cuda_host_refuse(const char* what, int line);

// Barriers. The line tells one barrier from another.
#define CUDA_HOST_LINE int line = __builtin_LINE()
inline void __syncthreads(CUDA_HOST_LINE) { cuda_host_barrier(false, "__syncthreads", line); }
inline int __syncthreads_count(int predicate, CUDA_HOST_LINE) {
    return cuda_host_barrier(predicate, "__syncthreads_count", line);
}
inline int __syncthreads_or(int predicate, CUDA_HOST_LINE) {
    return cuda_host_barrier(predicate, "__syncthreads_or", line) > 0;
}
inline int __syncthreads_and(int predicate, CUDA_HOST_LINE) {
    return cuda_host_barrier(!predicate, "__syncthreads_and", line) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_LINE) {
    cuda_host_vote(mask, false, "__syncwarp", line);
}
inline void __threadfence_block() { cuda_host_preemption_point(); }
inline void __threadfence() { cuda_host_preemption_point(); }
inline void __nanosleep(unsigned) { cuda_host_sleep(); }

// Warp votes and shuffles.
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_LINE) {
    return cuda_host_vote(mask, predicate, "__ballot_sync", line);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_LINE) {
    return cuda_host_vote(mask, predicate, "__any_sync", line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_LINE) {
    return cuda_host_vote(mask, !predicate, "__all_sync", line) == 0;
}

template <typename T>
T cuda_host_shuffle_value(unsigned mask, T value, int source, const char* name, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
    unsigned long long word = 0;
    __builtin_memcpy(&word, &value, sizeof(T));
    word = cuda_host_shuffle(mask, word, sizeof(T), source, name, line);
    __builtin_memcpy(&value, &word, sizeof(T));
    return value;
}
inline int cuda_host_segment(int width, int line) {
    if (width < 1 || width > 32 || (width & (width - 1))) {
        cuda_host_refuse("a shuffle's width has to be 1, 2, 4, 8, 16 or 32", line);
    }
    return cuda_host_lane() & ~(width - 1);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_HOST_LINE) {
    source = cuda_host_segment(width, line) | (source & (width - 1));
    return cuda_host_shuffle_value(mask, value, source, "__shfl_sync", line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_HOST_LINE) {
    const long long source = cuda_host_lane() - static_cast<long long>(delta);
    const bool inside = source >= cuda_host_segment(width, line);
    return cuda_host_shuffle_value(
        mask, value, inside ? static_cast<int>(source) : cuda_host_lane(), "__shfl_up_sync", line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_HOST_LINE) {
    const long long source = cuda_host_lane() + static_cast<long long>(delta);
    const bool inside = source < cuda_host_segment(width, line) + width;
    return cuda_host_shuffle_value(mask, value,
                                   inside ? static_cast<int>(source) : cuda_host_lane(),
                                   "__shfl_down_sync", line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_HOST_LINE) {
    const int source = cuda_host_lane() ^ lanes;
    const bool inside = source >= 0 && source < cuda_host_segment(width, line) + width;
    return cuda_host_shuffle_value(mask, value, inside ? source : cuda_host_lane(),
                                   "__shfl_xor_sync", line);
}

// Atomics: all threads share one thread of the system, so plain statements are atomic between two
// preemption points. Not instrumented, which would add points inside.
#define CUDA_HOST_ATOMIC(name, type, result)                                             \
    __attribute__((no_sanitize("thread"))) inline type name(type* address, type value) { \
        cuda_host_preemption_point();                                                    \
        const type old = *address;                                                       \
        *address = result;                                                               \
        return old;                                                                      \
    }
#define CUDA_HOST_INTEGER_ATOMICS(type)                                                        \
    CUDA_HOST_ATOMIC(atomicMin, type, value < old ? value : old)                               \
    CUDA_HOST_ATOMIC(atomicMax, type, value > old ? value : old)                               \
    CUDA_HOST_ATOMIC(atomicAnd, type, old& value)                                              \
    CUDA_HOST_ATOMIC(atomicOr, type, old | value)                                              \
    CUDA_HOST_ATOMIC(atomicXor, type, old ^ value)                                             \
    CUDA_HOST_ATOMIC(atomicExch, type, value)                                                  \
    __attribute__((no_sanitize("thread"))) inline type atomicCAS(type* address, type expected, \
                                                                 type value) {                 \
        cuda_host_preemption_point();                                                          \
        const type old = *address;                                                             \
        if (old == expected) *address = value;                                                 \
        return old;                                                                            \
    }
CUDA_HOST_INTEGER_ATOMICS(int)
CUDA_HOST_INTEGER_ATOMICS(unsigned)
CUDA_HOST_INTEGER_ATOMICS(unsigned long long)
// A GPU's integers wrap around where C++ leaves it undefined.
CUDA_HOST_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + value))
CUDA_HOST_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - value))
CUDA_HOST_ATOMIC(atomicAdd, unsigned, old + value)
CUDA_HOST_ATOMIC(atomicSub, unsigned, old - value)
CUDA_HOST_ATOMIC(atomicAdd, unsigned long long, old + value)
CUDA_HOST_ATOMIC(atomicAdd, float, old + value)
CUDA_HOST_ATOMIC(atomicAdd, double, old + value)
CUDA_HOST_ATOMIC(atomicExch, float, value)

// Bits.
template <typename To, typename From>
inline To cuda_host_same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
inline unsigned __float_as_uint(float value) { return cuda_host_same_bits<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return cuda_host_same_bits<float>(value); }
inline int __float_as_int(float value) { return cuda_host_same_bits<int>(value); }
inline float __int_as_float(int value) { return cuda_host_same_bits<float>(value); }
inline long long __double_as_longlong(double value) {
    return cuda_host_same_bits<long long>(value);
}
inline double __longlong_as_double(long long value) { return cuda_host_same_bits<double>(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value ? __builtin_clz(value) : 32; }
inline int __clzll(long long value) { return value ? __builtin_clzll(value) : 64; }
template <typename T>
inline T __ldg(const T* address) {
    return *address;
}

// Mathematics: CUDA has every function for float and double under one name, and with an f.
#define CUDA_HOST_MATH_1(name)                                       \
    inline float name##f(float x) { return __builtin_##name##f(x); } \
    inline float name(float x) { return __builtin_##name##f(x); }    \
    inline double name(double x) { return __builtin_##name(x); }
#define CUDA_HOST_MATH_2(name)                                                   \
    inline float name##f(float x, float y) { return __builtin_##name##f(x, y); } \
    inline float name(float x, float y) { return __builtin_##name##f(x, y); }    \
    inline double name(double x, double y) { return __builtin_##name(x, y); }
CUDA_HOST_MATH_1(exp)
CUDA_HOST_MATH_1(exp2)
CUDA_HOST_MATH_1(expm1)
CUDA_HOST_MATH_1(log)
CUDA_HOST_MATH_1(log2)
CUDA_HOST_MATH_1(log1p)
CUDA_HOST_MATH_1(sqrt)
CUDA_HOST_MATH_1(fabs)
CUDA_HOST_MATH_1(floor)
CUDA_HOST_MATH_1(ceil)
CUDA_HOST_MATH_2(fmin)
CUDA_HOST_MATH_2(fmax)
inline float fmaf(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
inline bool isnan(double x) { return __builtin_isnan(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }
inline bool isfinite(double x) { return __builtin_isfinite(x); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float abs(float x) { return __builtin_fabsf(x); }
inline double abs(double x) { return __builtin_fabs(x); }
inline float __expf(float x) { return __builtin_expf(x); }
// Rounded by itself, never fused with a neighbour.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }

template <typename A, typename B>
inline auto min(A a, B b) -> decltype(a + b) {
    return b < a ? b : a;
}
template <typename A, typename B>
inline auto max(A a, B b) -> decltype(a + b) {
    return a < b ? b : a;
}
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline double min(double a, double b) { return __builtin_fmin(a, b); }
inline double max(double a, double b) { return __builtin_fmax(a, b); }
