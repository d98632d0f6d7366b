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

// Half types are read as bits, so that no header of CUDA is needed.
struct Half {
    unsigned short bits;
};

struct BFloat16 {
    unsigned short bits;
};

__device__ inline float to_value(float value) { return value; }
__device__ inline double to_value(double value) { return value; }

__device__ inline float to_value(BFloat16 value) {
    return __uint_as_float(static_cast<unsigned int>(value.bits) << 16);
}

__device__ inline float to_value(Half value) {
    const unsigned int sign = (value.bits & 0x8000u) << 16;
    const unsigned int exponent = value.bits >> 10 & 31u, fraction = value.bits & 1023u;
    // Not a subnormal float scaled up: compiled as CuPy does, the GPU takes those for 0.
    if (exponent == 0) {
        return __uint_as_float(sign | __float_as_uint(fraction * 5.9604644775390625e-8f));
    }
    const unsigned int float_exponent = exponent == 31 ? 255u : exponent + 112;
    return __uint_as_float(sign | float_exponent << 23 | fraction << 13);
}
