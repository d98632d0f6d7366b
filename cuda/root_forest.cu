// Rooting a forest: the Euler tour of every tree, ranked as a linked list, gives parents and
// subtree sizes, whatever the depth. An edge is two arcs, and arcs are numbered by (source,
// target), so that the arcs out of a node are neighbours. Arrays are padded: how many edges are
// kept, only the device knows.
//
// Compiled for one JUMP, how many splitters a jump passes in one launch, one UNUSED, the key of an
// arc that no kept edge has made, and ARCS_PER_SPLITTER: of so many arcs in a row one is a
// splitter, from which one thread follows the list to the next splitter.
#include "common.cuh"

const int NONE = -1;
// What follows the last arc of a list.
const int END = -0x7fffffff - 1;

__device__ inline long long key_of(long long source, long long target) {
    return source << 32 | target;
}

__device__ inline int source_of(long long key) { return static_cast<int>(key >> 32); }

__device__ inline int target_of(long long key) { return static_cast<int>(key & 0xffffffffLL); }

__device__ inline bool is_inside(long long node, long long num_nodes) {
    return 0 <= node && node < num_nodes;
}

// The finalizer of MurmurHash3.
__device__ inline unsigned int hash(unsigned int number) {
    number ^= number >> 16;
    number *= 0x85ebca6bu;
    number ^= number >> 13;
    number *= 0xc2b2ae35u;
    return number ^ number >> 16;
}

// Arcs at any regular distance are splitters equally often.
__device__ inline bool is_sampled(unsigned int arc) {
    return arc % ARCS_PER_SPLITTER == hash(arc / ARCS_PER_SPLITTER) % ARCS_PER_SPLITTER;
}

__device__ inline int root_of(const int* label, const int* chosen, int node) {
    const int lowest = label[node];
    return chosen[lowest] == NONE ? lowest : chosen[lowest];
}

extern "C" __global__ void start_nodes(int* link, int* chosen, int* first_arc, int* end_arc,
                                       unsigned long long* heaviest, long long* parent,
                                       long long* arc_key, long long num_nodes,
                                       long long num_arcs) {
    for (long long node = thread_index(); node < num_nodes; node += num_threads()) {
        link[node] = static_cast<int>(node);
        chosen[node] = NONE;
        first_arc[node] = end_arc[node] = 0;
        heaviest[node] = 0;
        parent[node] = node;
    }
    for (long long arc = thread_index(); arc < num_arcs; arc += num_threads()) {
        arc_key[arc] = UNUSED;
    }
}

// An edge is kept where it joins two trees, so the kept edges form a forest whatever the input is.
// Its arcs are listed at the root that is none any more, of which there is no other edge, or at the
// edge itself, whichever takes less room; sorting makes the list the same in any order of threads.
extern "C" __global__ void join_edges(const long long* edge_index, const bool* edge_mask, int* link,
                                      long long* arc_key, long long num_edges,
                                      long long num_nodes) {
    const bool by_edge = num_edges < num_nodes - 1;
    for (long long edge = thread_index(); edge < num_edges; edge += num_threads()) {
        const long long first = edge_index[edge], second = edge_index[num_edges + edge];
        const bool is_edge = (edge_mask == nullptr || edge_mask[edge]) && first != second &&
                             is_inside(first, num_nodes) && is_inside(second, num_nodes);
        if (!is_edge) continue;
        const int joined = joined_root(link, static_cast<int>(first), static_cast<int>(second));
        if (joined == NONE) continue;
        // Node 0 stays a root.
        const long long arc = 2 * (by_edge ? edge : joined - 1);
        arc_key[arc] = key_of(first, second);
        arc_key[arc + 1] = key_of(second, first);
    }
}

// The highest of the nodes offered becomes the root of its tree; without an offer, the lowest node.
extern "C" __global__ void label_nodes(int* link, int* label, int* chosen, const long long* offered,
                                       long long num_offered, long long num_nodes) {
    for (long long node = thread_index(); node < num_nodes; node += num_threads()) {
        label[node] = find_root(link, static_cast<int>(node));
    }
    for (long long i = thread_index(); i < num_offered; i += num_threads()) {
        const long long node = offered == nullptr ? i : offered[i];
        if (!is_inside(node, num_nodes)) continue;
        atomicMax(chosen + find_root(link, static_cast<int>(node)), static_cast<int>(node));
    }
}

// After sorting: where each node's arcs begin and end, and where each listed arc went.
extern "C" __global__ void find_arcs(const long long* arc_key, const long long* listed_as,
                                     int* arc_of_listed, int* first_arc, int* end_arc,
                                     long long num_arcs) {
    for (long long arc = thread_index(); arc < num_arcs; arc += num_threads()) {
        if (arc_key[arc] == UNUSED) continue;
        arc_of_listed[listed_as[arc]] = static_cast<int>(arc);
        const int node = source_of(arc_key[arc]);
        const bool is_first = arc == 0 || source_of(arc_key[arc - 1]) != node;
        const bool is_last = arc + 1 == num_arcs || source_of(arc_key[arc + 1]) != node;
        if (is_first) first_arc[node] = static_cast<int>(arc);
        if (is_last) end_arc[node] = static_cast<int>(arc) + 1;
    }
}

// The tour leaves a node by the arc after the one back to where it came from, round and round, and
// ends where it would leave the root by its first arc again. `next` tells by its sign whether a
// splitter follows, ~next: so following the list takes one dependent read per arc. A splitter is
// its own.
extern "C" __global__ void link_arcs(const long long* arc_key, const long long* listed_as,
                                     const int* arc_of_listed, const int* first_arc,
                                     const int* end_arc, const int* label, const int* chosen,
                                     int* twin, int* next, int* splitter, long long num_arcs) {
    for (long long arc = thread_index(); arc < num_arcs; arc += num_threads()) {
        splitter[arc] = NONE;
        if (arc_key[arc] == UNUSED) continue;
        const int source = source_of(arc_key[arc]), node = target_of(arc_key[arc]);
        const int back = arc_of_listed[listed_as[arc] ^ 1];
        const int root = root_of(label, chosen, node);
        twin[arc] = back;
        const int onward = back + 1 < end_arc[node] ? back + 1 : first_arc[node];
        const bool is_last = node == root && onward == first_arc[node];
        next[arc] = is_last                                         ? END
                    : is_sampled(static_cast<unsigned int>(onward)) ? ~onward
                                                                    : onward;
        const bool is_head = source == root && arc == first_arc[source];
        if (is_head || is_sampled(static_cast<unsigned int>(arc)))
            splitter[arc] = static_cast<int>(arc);
    }
}

// What other threads write meanwhile never makes an arc its own splitter.
extern "C" __global__ void follow_to_splitters(const int* next, int* splitter, int* place,
                                               int* next_splitter, int* num_to_next,
                                               long long num_arcs) {
    for (long long start = thread_index(); start < num_arcs; start += num_threads()) {
        if (splitter[start] != start) continue;
        int arc = static_cast<int>(start), num_followed = 0;
        while (arc >= 0) {
            splitter[arc] = static_cast<int>(start);
            place[arc] = num_followed++;
            arc = next[arc];
        }
        next_splitter[start] = arc == END ? NONE : ~arc;
        num_to_next[start] = num_followed;
    }
}

// Pointer jumping: afterwards every splitter points JUMP times as far, and counts the arcs between.
extern "C" __global__ void jump(const int* splitter, const int* next_splitter,
                                const int* num_to_next, int* far_splitter, int* num_to_far,
                                long long num_arcs) {
    for (long long start = thread_index(); start < num_arcs; start += num_threads()) {
        if (splitter[start] != start) continue;
        int arc = static_cast<int>(start), num_passed = 0;
        for (int step = 0; step < JUMP && arc != NONE; ++step) {
            num_passed += num_to_next[arc];
            arc = next_splitter[arc];
        }
        far_splitter[start] = arc;
        num_to_far[start] = num_passed;
    }
}

__device__ inline int num_to_end(const int* splitter, const int* place,
                                 const int* num_from_splitter, long long arc) {
    return num_from_splitter[splitter[arc]] - place[arc];
}

// Of the two arcs of an edge the tour takes the one to the child first; between them lies the
// child's subtree. `enter` counts the arcs from the one into a node to the end of the tour.
extern "C" __global__ void measure_subtrees(const long long* arc_key, const int* twin,
                                            const int* splitter, const int* place,
                                            const int* num_from_splitter, long long* parent,
                                            int* size, int* enter, unsigned long long* heaviest,
                                            long long num_arcs) {
    for (long long arc = thread_index(); arc < num_arcs; arc += num_threads()) {
        if (arc_key[arc] == UNUSED) continue;
        const int here = num_to_end(splitter, place, num_from_splitter, arc);
        const int back = num_to_end(splitter, place, num_from_splitter, twin[arc]);
        if (here < back) continue;
        const int above = source_of(arc_key[arc]), node = target_of(arc_key[arc]);
        const int subtree = (here - back + 1) / 2;
        parent[node] = above;
        size[node] = subtree;
        enter[node] = here;
        atomicMax(heaviest + above, static_cast<unsigned long long>(subtree) << 32 | node);
    }
}

__device__ inline bool is_light_child(const long long* parent, const unsigned long long* heaviest,
                                      long long above, long long node) {
    return parent[node] == above && static_cast<int>(heaviest[above] & 0xffffffffULL) != node;
}

// `sizes` gets what is summed up: by node that of the tree that it is the lowest of; then by arc
// how many nodes a light child brings.
extern "C" __global__ void measure_trees(const int* label, const int* chosen, const int* first_arc,
                                         const int* end_arc, const int* num_from_splitter,
                                         const long long* arc_key, const long long* parent,
                                         const unsigned long long* heaviest, int* size, int* enter,
                                         int* sizes, long long num_arcs, long long num_nodes) {
    for (long long node = thread_index(); node < num_nodes; node += num_threads()) {
        const int root = root_of(label, chosen, static_cast<int>(node));
        const bool is_alone = first_arc[root] == end_arc[root];
        const int num_tree_arcs = is_alone ? 0 : num_from_splitter[first_arc[root]];
        const int num_tree_nodes = num_tree_arcs / 2 + 1;
        sizes[node] = label[node] == node ? num_tree_nodes : 0;
        if (root != node) continue;
        size[node] = num_tree_nodes;
        enter[node] = num_tree_arcs + 1;
    }
    int* light_size = sizes + num_nodes;
    for (long long arc = thread_index(); arc < num_arcs; arc += num_threads()) {
        light_size[arc] = 0;
        if (arc_key[arc] == UNUSED) continue;
        const int above = source_of(arc_key[arc]), node = target_of(arc_key[arc]);
        if (is_light_child(parent, heaviest, above, node)) light_size[arc] = size[node];
    }
}

// The tour as places: two for every node, where it is entered and where it is left, the trees one
// after another.
struct Tour {
    long long enter, leave;
};

__device__ inline Tour tour_of(const int* label, const int* end_of_trees, const int* enter,
                               const int* size, long long node) {
    const long long entered = 2LL * end_of_trees[label[node]] - 1 - enter[node];
    return {entered, entered + 2LL * size[node] - 1};
}

// Adds to the places of a subtree how far its root stands behind its parent in the order. `sums`
// are the running sums of `sizes`: by node where its tree ends, then by arc.
extern "C" __global__ void offset_subtrees(const long long* arc_key, const long long* parent,
                                           const int* size, const int* enter, const int* label,
                                           const unsigned long long* heaviest, const int* first_arc,
                                           const int* sizes, const int* sums, int* offset,
                                           long long num_arcs, long long num_nodes) {
    const int *end_of_trees = sums, *num_light = sums + num_nodes, *light_size = sizes + num_nodes;
    for (long long node = thread_index(); node < num_nodes; node += num_threads()) {
        if (parent[node] != node) continue;
        const Tour tour = tour_of(label, end_of_trees, enter, size, node);
        const int num_before = end_of_trees[label[node]] - size[node];
        offset[tour.enter] = num_before;
        offset[tour.leave] = -num_before;
    }
    for (long long arc = thread_index(); arc < num_arcs; arc += num_threads()) {
        if (arc_key[arc] == UNUSED) continue;
        const int above = source_of(arc_key[arc]), node = target_of(arc_key[arc]);
        if (parent[node] != above) continue;
        const int first = first_arc[above];
        // The running sum begins behind those of the trees and may pass 2^31; differences of
        // unsigned numbers come out right all the same.
        const unsigned int before = num_light[arc] - static_cast<unsigned int>(light_size[arc]);
        const unsigned int before_first =
            num_light[first] - static_cast<unsigned int>(light_size[first]);
        const int num_before = static_cast<int>(before - before_first);
        const bool is_light = is_light_child(parent, heaviest, above, node);
        const int behind = is_light ? 1 + num_before : size[above] - size[node];
        const Tour tour = tour_of(label, end_of_trees, enter, size, node);
        offset[tour.enter] = behind;
        offset[tour.leave] = -behind;
    }
}

// `place_on_tour` is the running sum of the offsets: at the place where a node is entered, its own.
// `places` gets the node at each place, the place above it, and where its subtree ends.
extern "C" __global__ void order_nodes(const long long* parent, const int* size, const int* enter,
                                       const int* label, const int* end_of_trees,
                                       const int* place_on_tour, long long* order, int* places,
                                       long long num_nodes) {
    int *node_at = places, *above = places + num_nodes, *end = places + 2 * num_nodes;
    for (long long node = thread_index(); node < num_nodes; node += num_threads()) {
        const long long over = parent[node];
        const int place = place_on_tour[tour_of(label, end_of_trees, enter, size, node).enter];
        order[place] = node;
        node_at[place] = static_cast<int>(node);
        above[place] = place_on_tour[tour_of(label, end_of_trees, enter, size, over).enter];
        end[place] = place + size[node];
    }
}
