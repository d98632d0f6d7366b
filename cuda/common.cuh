// What the operations share. Every file compiles with NVRTC alone: no header of CUDA or of the
// standard library is included, and each of our own is put in once
// (groot_graph/ops/cuda/launch.py).

// A thread's number in its grid, and the number of threads: every kernel strides over its work.
__device__ inline long long thread_index() {
    return blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
}

__device__ inline long long num_threads() { return gridDim.x * static_cast<long long>(blockDim.x); }

// Union-find over `link`, which leads every node to a lower one of its tree, and a root to itself.
// Lock-free: other threads may join trees meanwhile, so a root may have become an inner node by the
// time it is used. Volatile reads, because the first-level cache may hold old links for ever.

__device__ inline int read_link(const int* link, int node) {
    return *const_cast<const volatile int*>(link + node);
}

__device__ inline int find_root(int* link, int node) {
    int above = read_link(link, node);
    while (above != node) {
        const int next = read_link(link, above);
        // A lost update only leaves a longer way to the same root.
        if (next != above) link[node] = next;
        node = above;
        above = next;
    }
    return node;
}

// Joins two trees under the lower root. Exactly one of the calls that join the same trees returns
// the root that is none any more; the others, -1.
__device__ inline int joined_root(int* link, int first, int second) {
    while (true) {
        first = find_root(link, first);
        second = find_root(link, second);
        if (first == second) return -1;
        const int low = first < second ? first : second;
        const int high = first < second ? second : first;
        if (atomicCAS(link + high, high, low) == high) return high;
    }
}

__device__ inline bool join_trees(int* link, int first, int second) {
    return joined_root(link, first, second) >= 0;
}

// Half types are bits, so that no header of CUDA is needed.
struct Half {
    unsigned short bits;
};

struct BFloat16 {
    unsigned short bits;
};

#ifdef __CUDACC__
__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ inline float to_value(float value) { return value; }
__device__ inline double to_value(double value) { return value; }
__device__ inline float to_value(Half value) { return half_to_float(value.bits); }

__device__ inline float to_value(BFloat16 value) {
    return __uint_as_float(static_cast<unsigned int>(value.bits) << 16);
}

__device__ inline void store(float* to, float value) { *to = value; }
__device__ inline void store(double* to, double value) { *to = value; }
__device__ inline void store(Half* to, float value) { to->bits = float_to_half(value); }

// To the nearest, and of two to the even one. The oldest GPUs have no instruction for it.
__device__ inline void store(BFloat16* to, float value) {
    const unsigned int bits = __float_as_uint(value);
    const unsigned int rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    to->bits = static_cast<unsigned short>(value == value ? rounded >> 16 : 0x7fffu);
}
