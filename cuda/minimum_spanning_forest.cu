// Borůvka's algorithm. In every round each tree looks for its lowest edge by (weight, edge number),
// then the trees are joined along these. The launches are a fixed number: a round that finds no
// living edge, one between two trees, ends the search, and the kernels after it return at once.
//
// In the rounds that are launched edges keep their place, a dead one costs one read of 8 bytes per
// round. The choice is made from the trees' side, so a round's second kernel reads one number per
// node and only chosen edges. The last of them lists its living edges, and one block goes on with
// these alone, for as many rounds as it takes.
//
// Compiled for MOST_THREADS_PER_BLOCK.

#include "common.cuh"

using Key = unsigned long long;
constexpr Key NO_EDGE = ~0ull;

// An edge's ends, or the roots of these when last looked up. Of a dead edge both are the same.
struct alignas(8) Ends {
    int first, second;
};

// An edge's place among all: the weight's 32 bits as an unsigned number that compares as the weight
// does, then the edge number, so that no two keys are equal.
__device__ inline Key key_of(long long edge, int weight, bool is_float) {
    // The lower bits of negative floats count down; -0 is 0.
    if (is_float && weight < 0) weight = weight == -0x7FFFFFFF - 1 ? 0 : weight ^ 0x7FFFFFFF;
    return static_cast<Key>(static_cast<unsigned>(weight) ^ 0x80000000u) << 32 | edge;
}

// Keeps the lowest key. Most offers are too high, and an atomic costs more than a read. Volatile,
// because a value that other threads have lowered meanwhile turns more of them away.
__device__ inline void offer(Key* lowest, int root, Key key) {
    if (key < *const_cast<volatile Key*>(lowest + root)) atomicMin(lowest + root, key);
}

// Looks the roots of an edge up and offers the edge to both; whether it lives. Before the first
// join every node is a root.
__device__ inline bool offer_edge(long long edge, const int* weight, bool is_float, bool has_joined,
                                  int* link, Key* lowest, Ends* ends) {
    Ends roots = ends[edge];
    if (roots.first == roots.second) return false;
    if (has_joined) {
        roots = {find_root(link, roots.first), find_root(link, roots.second)};
        ends[edge] = roots;
        if (roots.first == roots.second) return false;
    }
    const Key key = key_of(edge, weight[edge], is_float);
    offer(lowest, roots.first, key);
    offer(lowest, roots.second, key);
    return true;
}

// Takes an offer back for the next round, if it is the lowest; whether it is. Of all keys only the
// lowest finds itself, before and after.
__device__ inline bool take_back(Key* lowest, int root, Key key) {
    if (*const_cast<volatile Key*>(lowest + root) != key) return false;
    lowest[root] = NO_EDGE;
    return true;
}

// Every node is a tree; self-loops, and edges to nodes that do not exist, are dead.
extern "C" __global__ void start_forest(const long long* source, const long long* target,
                                        long long num_edges, long long num_nodes,
                                        long long num_rounds, int* link, Key* lowest, Ends* ends,
                                        int* has_living, bool* edge_mask) {
    for (long long node = thread_index(); node < num_nodes; node += num_threads()) {
        link[node] = static_cast<int>(node);
        lowest[node] = NO_EDGE;
    }
    for (long long edge = thread_index(); edge < num_edges; edge += num_threads()) {
        const long long first = source[edge], second = target[edge];
        const bool is_valid = first >= 0 && first < num_nodes && second >= 0 && second < num_nodes;
        ends[edge] =
            is_valid ? Ends{static_cast<int>(first), static_cast<int>(second)} : Ends{0, 0};
        edge_mask[edge] = false;
    }
    for (long long round = thread_index(); round < num_rounds; round += num_threads()) {
        has_living[round] = 0;
    }
}

// Offers every living edge to its trees. `left`, where it is given, gets a list of them in any
// order, whose length is counted behind the rounds.
extern "C" __global__ void find_lowest(const int* weight, long long is_float, long long num_edges,
                                       long long round, int* link, Key* lowest, Ends* ends,
                                       int* has_living, int* left) {
    if (round > 0 && !has_living[round - 1]) return;
    bool found_living = false;
    for (long long edge = thread_index(); edge < num_edges; edge += num_threads()) {
        if (!offer_edge(edge, weight, is_float, round > 0, link, lowest, ends)) continue;
        found_living = true;
        if (left != nullptr) left[atomicAdd(has_living + round + 1, 1)] = static_cast<int>(edge);
    }
    if (found_living) has_living[round] = 1;
}

// Joins every tree along its lowest edge, and takes the offer back for the next round.
extern "C" __global__ void join_lowest(long long num_nodes, long long round, int* link, Key* lowest,
                                       const Ends* ends, const int* has_living, bool* edge_mask) {
    if (!has_living[round]) return;
    for (long long root = thread_index(); root < num_nodes; root += num_threads()) {
        const Key key = lowest[root];
        if (key == NO_EDGE) continue;
        lowest[root] = NO_EDGE;
        const unsigned edge = static_cast<unsigned>(key);
        // Where both trees chose the edge, one of the two joins them.
        if (join_trees(link, ends[edge].first, ends[edge].second)) edge_mask[edge] = true;
    }
}

// All rounds that are left, in one block. Every thread has edges of its own, every so many of the
// list, and moves those that live together from round to round.
extern "C" __global__ void __launch_bounds__(MOST_THREADS_PER_BLOCK)
    finish_forest(const int* weight, long long is_float, int* left, const int* has_living,
                  long long num_rounds, int* link, Key* lowest, Ends* ends, bool* edge_mask) {
    const int first = threadIdx.x, apart = blockDim.x, num_left = has_living[num_rounds];
    int num_own = num_left > first ? (num_left - first - 1) / apart + 1 : 0;
    while (true) {
        int num_living = 0;
        for (int i = 0; i < num_own; ++i) {
            const int edge = left[first + i * apart];
            if (!offer_edge(edge, weight, is_float, true, link, lowest, ends)) continue;
            left[first + num_living++ * apart] = edge;
        }
        num_own = num_living;
        if (!__syncthreads_or(num_own > 0)) return;
        for (int i = 0; i < num_own; ++i) {
            const int edge = left[first + i * apart];
            const Ends roots = ends[edge];
            const Key key = key_of(edge, weight[edge], is_float);
            const bool first_chose = take_back(lowest, roots.first, key);
            const bool second_chose = take_back(lowest, roots.second, key);
            if (!first_chose && !second_chose) continue;
            if (join_trees(link, roots.first, roots.second)) edge_mask[edge] = true;
        }
        __syncthreads();
    }
}
