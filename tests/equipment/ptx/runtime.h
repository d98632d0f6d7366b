// What PTX that is translated to C++ needs to run on the CPU: the meaning of its instructions, and
// the threads. Nothing of the standard library is included: many small builds have to be fast.
#pragma once

#include <ucontext.h>

namespace ptx {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using s8 = signed char;
using s16 = short;
using s32 = int;
using s64 = long long;
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;
using f32 = float;
using f64 = double;
using pred = bool;

constexpr u32 WARP_SIZE = 32;
constexpr u32 MOST_THREADS = 1024;
// What a block has without asking for more.
constexpr u32 SHARED_SIZE = 48 << 10;

// Registers hold bits. An instruction says what their lowest mean, and what is put into them:
// signed integers are extended by their sign.
template <typename To, typename From>
inline To as(From from) {
    static_assert(sizeof(To) <= sizeof(From), "an operand has at least the instruction's size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
template <>
inline pred as<pred, u64>(u64 literal) {
    return literal != 0;
}
template <typename Register, typename T>
inline void set(Register& to, T value) {
    to = static_cast<Register>(value);
}
template <typename Register>
inline void set(Register& to, f32 value) {
    to = as<u32>(value);
}
template <typename Register>
inline void set(Register& to, f64 value) {
    to = as<u64>(value);
}

// Memory.
template <typename T>
inline T load(u64 address) {
    T value;
    __builtin_memcpy(&value, reinterpret_cast<const void*>(address), sizeof(T));
    return value;
}
template <typename T>
inline void store(u64 address, T value) {
    __builtin_memcpy(reinterpret_cast<void*>(address), &value, sizeof(T));
}
// What the blocks share, one after another; an address in it is a place.
alignas(16) static char shared_memory[SHARED_SIZE];
inline u64 shared(u64 place) { return reinterpret_cast<u64>(shared_memory + place); }
// All threads share one thread of the system, so plain statements are atomic.
template <typename T>
inline T fetch(T (*operation)(T, T), u64 address, T value) {
    const T old = load<T>(address);
    store<T>(address, operation(old, value));
    return old;
}
template <typename T>
inline T cas(u64 address, T expected, T value) {
    const T old = load<T>(address);
    if (old == expected) store<T>(address, value);
    return old;
}

// Arithmetic. Integers wrap around: the compiler is told so by -fwrapv.
template <typename T>
inline T add(T a, T b) {
    return a + b;
}
template <typename T>
inline T sub(T a, T b) {
    return a - b;
}
template <typename T>
inline T mul(T a, T b) {
    return a * b;
}
// The upper half of the product.
template <typename T>
inline T mul_hi(T a, T b) {
    return static_cast<T>(static_cast<__int128>(a) * b >> 8 * sizeof(T));
}
template <typename T>
inline T mad(T a, T b, T c) {
    return a * b + c;
}
// A GPU divides by zero without a complaint; what comes out is not specified.
template <typename T>
inline T div(T a, T b) {
    return b == 0 ? static_cast<T>(-1) : a / b;
}
template <typename T>
inline T rem(T a, T b) {
    return b == 0 ? a : a % b;
}
template <typename T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
template <typename T>
inline T neg(T a) {
    return -a;
}
inline f32 abs(f32 a) { return __builtin_fabsf(a); }
inline f64 abs(f64 a) { return __builtin_fabs(a); }
inline f32 fma(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
inline f64 fma(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }
inline f32 ex2(f32 a) { return __builtin_exp2f(a); }
// Subnormal numbers become zeros of their sign.
inline f32 flush(f32 a) {
    const u32 bits = as<u32>(a);
    return bits & 0x7f800000u ? a : as<f32>(bits & 0x80000000u);
}

// Bits. Shifts by more than the width are as good as shifts by the width.
template <typename T>
inline T bit_and(T a, T b) {
    return a & b;
}
template <typename T>
inline T bit_or(T a, T b) {
    return a | b;
}
template <typename T>
inline T bit_xor(T a, T b) {
    return a ^ b;
}
template <typename T>
inline T bit_not(T a) {
    return ~a;
}
inline pred bit_not(pred a) { return !a; }
template <typename T>
inline T second(T, T b) {
    return b;
}
template <typename T>
inline T shl(T a, u32 count) {
    return count < 8 * sizeof(T) ? a << count : 0;
}
template <typename T>
inline T shr(T a, u32 count) {
    return count < 8 * sizeof(T) ? a >> count : a < 0 ? -1 : 0;
}
// The lowest bits of `a` in the place of some of `b`.
template <typename T>
inline T insert(T a, T b, u32 first, u32 number) {
    const T replaced = shl(static_cast<T>(shl<T>(1, number) - 1), first);
    return (b & ~replaced) | (shl(a, first) & replaced);
}

// Four of the eight bytes of `low` and `high`, or the sign of one in all its bits.
inline u32 permute(u32 low, u32 high, u32 selected) {
    const u64 bytes = low | u64(high) << 32;
    u32 found = 0;
    for (int place = 0; place < 4; ++place) {
        const u32 choice = selected >> 4 * place & 15;
        u32 byte = bytes >> 8 * (choice & 7) & 255;
        if (choice & 8) byte = byte & 128 ? 255 : 0;
        found |= byte << 8 * place;
    }
    return found;
}

// Comparisons: with a NaN none holds, but for those whose name ends in u, which all hold.
template <typename T>
inline pred eq(T a, T b) {
    return a == b;
}
template <typename T>
inline pred ne(T a, T b) {
    return a < b || a > b;
}
template <typename T>
inline pred lt(T a, T b) {
    return a < b;
}
template <typename T>
inline pred le(T a, T b) {
    return a <= b;
}
template <typename T>
inline pred gt(T a, T b) {
    return a > b;
}
template <typename T>
inline pred ge(T a, T b) {
    return a >= b;
}
template <typename T>
inline pred equ(T a, T b) {
    return !ne(a, b);
}
template <typename T>
inline pred neu(T a, T b) {
    return !eq(a, b);
}
template <typename T>
inline pred ltu(T a, T b) {
    return !ge(a, b);
}
template <typename T>
inline pred leu(T a, T b) {
    return !gt(a, b);
}
template <typename T>
inline pred gtu(T a, T b) {
    return !le(a, b);
}
template <typename T>
inline pred geu(T a, T b) {
    return !lt(a, b);
}
template <typename T>
inline pred num(T a, T b) {
    return a == a && b == b;
}
template <typename T>
inline pred nan(T a, T b) {
    return !num(a, b);
}

// Threads.
struct Thread {
    u32 tid, ntid, ctaid, nctaid;
};
using Kernel = void (*)(const u64* arguments, Thread thread);

// The threads of a block, each with a stack of its own, take turns: one runs until it waits at a
// shuffle or a barrier.
struct Lane {
    ucontext_t context;
    Thread thread;
    bool is_done, is_at_barrier;
    // Where it waits, and the operands of a shuffle.
    u32 line, mask, value, source;
    u32 received;
};
static Lane lanes[MOST_THREADS];
static ucontext_t scheduler;
static u32 running;
static Kernel kernel_of_lanes;
static const u64* arguments_of_lanes;
constexpr u32 STACK_SIZE = 1 << 16;
alignas(16) static char stacks[MOST_THREADS][STACK_SIZE];
// What is received from a lane that takes no part.
constexpr u32 GARBAGE = 0xffc0dead;
// What shared memory holds when a block starts.
constexpr int GARBAGE_BYTE = 0xcd;

struct Source {
    u32 lane;
    pred is_inside;
};
// Whom a lane receives from, as PTX defines it by the operands b and c of a shuffle.
struct Segment {
    u32 lane, mask, last;
    Segment(Thread thread, u32 c)
        : lane(thread.tid % WARP_SIZE), mask(c >> 8 & 31), last((lane & mask) | (c & 31 & ~mask)) {}
    Source from(u32 source, pred is_inside) const { return {is_inside ? source : lane, is_inside}; }
};
inline Source up(Thread thread, u32 b, u32 c) {
    const Segment segment(thread, c);
    const s32 source = static_cast<s32>(segment.lane) - static_cast<s32>(b & 31);
    return segment.from(source, source >= static_cast<s32>(segment.last));
}
inline Source down(Thread thread, u32 b, u32 c) {
    const Segment segment(thread, c);
    const u32 source = segment.lane + (b & 31);
    return segment.from(source, source <= segment.last);
}
inline Source bfly(Thread thread, u32 b, u32 c) {
    const Segment segment(thread, c);
    const u32 source = segment.lane ^ (b & 31);
    return segment.from(source, source <= segment.last);
}
inline Source idx(Thread thread, u32 b, u32 c) {
    const Segment segment(thread, c);
    const u32 source = (segment.lane & segment.mask) | (b & 31 & ~segment.mask);
    return segment.from(source, source <= segment.last);
}

static u32 wait(u32 line, bool is_at_barrier, u32 mask, u32 value, u32 source) {
    Lane& lane = lanes[running];
    lane.line = line;
    lane.is_at_barrier = is_at_barrier;
    lane.mask = mask;
    lane.value = value;
    lane.source = source;
    swapcontext(&lane.context, &scheduler);
    return lane.received;
}
inline u32 receive(u32 line, u32 mask, u32 value, u32 source) {
    return wait(line, false, mask, value, source);
}
// For how many threads of the block the predicate holds.
inline u32 synchronize(u32 line, pred predicate) { return wait(line, true, 0, predicate, 0); }

static void run_lane() {
    Lane& lane = lanes[running];
    kernel_of_lanes(arguments_of_lanes, lane.thread);
    lane.is_done = true;
    swapcontext(&lane.context, &scheduler);
}

static void resume(u32 number) {
    running = number;
    swapcontext(&scheduler, &lanes[number].context);
}

static void start(u32 number, Thread thread) {
    Lane& lane = lanes[number];
    lane.thread = thread;
    lane.is_done = false;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = stacks[number];
    lane.context.uc_stack.ss_size = STACK_SIZE;
    makecontext(&lane.context, run_lane, 0);
    resume(number);
}

inline bool takes_part(u32 mask, u32 number) { return mask >> number & 1; }

inline bool waits_at_shuffle(const Lane& lane) { return !lane.is_done && !lane.is_at_barrier; }

// Whether all lanes of a warp that a lane's mask names wait at the same shuffle with the same mask.
static bool is_complete(const Lane* warp, const Lane& lane) {
    for (u32 i = 0; i < WARP_SIZE; ++i) {
        const bool waits_too =
            waits_at_shuffle(warp[i]) && warp[i].line == lane.line && warp[i].mask == lane.mask;
        if (takes_part(lane.mask, i) && !waits_too) return false;
    }
    return true;
}

// All receive before the first goes on and sends another value.
static void exchange(u32 first, u32 mask) {
    Lane* warp = lanes + first;
    for (u32 i = 0; i < WARP_SIZE; ++i) {
        const u32 source = warp[i].source;
        warp[i].received = takes_part(mask, source) ? warp[source].value : GARBAGE;
    }
    for (u32 i = 0; i < WARP_SIZE; ++i) {
        if (takes_part(mask, i)) resume(first + i);
    }
}

// Completes one shuffle of a warp; false where none can be.
static bool advance_warp(u32 first) {
    for (u32 i = 0; i < WARP_SIZE; ++i) {
        const Lane& lane = lanes[first + i];
        if (!waits_at_shuffle(lane) || !takes_part(lane.mask, i)) continue;
        if (!is_complete(lanes + first, lane)) continue;
        exchange(first, lane.mask);
        return true;
    }
    return false;
}

// Lets all threads of a block go on; false where they do not all wait at the same barrier.
static bool pass_barrier(u32 block) {
    u32 number = 0;
    for (u32 i = 0; i < block; ++i) {
        const Lane& lane = lanes[i];
        if (lane.is_done || !lane.is_at_barrier || lane.line != lanes[0].line) return false;
        number += lane.value;
    }
    for (u32 i = 0; i < block; ++i) lanes[i].received = number;
    for (u32 i = 0; i < block; ++i) resume(i);
    return true;
}

static bool are_done(u32 block) {
    for (u32 i = 0; i < block; ++i) {
        if (!lanes[i].is_done) return false;
    }
    return true;
}

static bool advance(u32 block) {
    bool has_advanced = false;
    for (u32 first = 0; first < block; first += WARP_SIZE) {
        while (advance_warp(first)) has_advanced = true;
    }
    return has_advanced || pass_barrier(block);
}

// Runs every thread of the grid, block by block; tells what went wrong.
static const char* run_blocks(Kernel kernel, const u64* arguments, u32 grid, u32 block) {
    if (block > MOST_THREADS || block % WARP_SIZE) return "a block has up to 32 whole warps";
    kernel_of_lanes = kernel;
    arguments_of_lanes = arguments;
    for (u32 number = 0; number < grid; ++number) {
        __builtin_memset(shared_memory, GARBAGE_BYTE, SHARED_SIZE);
        for (u32 i = 0; i < block; ++i) start(i, {i, block, number, grid});
        while (!are_done(block)) {
            if (!advance(block)) return "threads wait at shuffles or barriers for one another";
        }
    }
    return nullptr;
}

// The same where no thread waits for another.
static const char* run_threads(Kernel kernel, const u64* arguments, u32 grid, u32 block) {
    for (u32 i = 0; i < grid * block; ++i) kernel(arguments, {i % block, block, i / block, grid});
    return nullptr;
}

}  // namespace ptx
