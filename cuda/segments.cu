// Cuts an ordered forest into segments of bounded length, for walks whose time does not follow the
// depth of the trees. See segments.cuh for what a segment is and how it is walked.
//
// A node is large where its subtree has more than `most` nodes. Large nodes joined to their last
// child form chains; every other node belongs to the chain that its subtree hangs from, or to a
// tree without large nodes. Slots are the places of the order, sorted stably by the number of light
// edges between large nodes above: so a chain and what hangs from it are one range of slots.
#include "common.cuh"
#include "segment_flags.cuh"

// Sort keys: below the first, the number of light edges above; then trees without large nodes; then
// places that hold no node.
const int SMALL_TREE = 64;
const int NO_NODE = 128;

__device__ inline long long num_present(const int* count, long long num_places) {
    return count == nullptr ? num_places : *count;
}

__device__ inline bool is_last_child(const int* above, const int* end, long long place) {
    return end[place] == end[above[place]];
}

__device__ inline bool is_large(const int* end, long long place, long long most) {
    return end[place] - place > most;
}

// A child that does not go on its parent's chain.
__device__ inline bool is_light(const int* above, const int* end, long long place) {
    return above[place] != place && !is_last_child(above, end, place);
}

extern "C" __global__ void find_heaviest(const int* above, const int* end, const int* count,
                                         unsigned long long* heaviest, long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        if (above[place] == place) continue;
        const unsigned long long size = end[place] - place;
        atomicMax(heaviest + above[place], size << 32 | place);
    }
}

// How far each subtree moves in the order when the heaviest child of every node becomes its last.
extern "C" __global__ void move_heaviest_last(const int* above, const int* end, const int* count,
                                              const unsigned long long* heaviest, int* move,
                                              long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        if (above[place] == place) continue;
        const int heavy = static_cast<int>(heaviest[above[place]] & 0xffffffffULL);
        int distance = 0;
        if (place == heavy) distance = end[above[place]] - end[place];
        if (place > heavy) distance = heavy - end[heavy];
        if (distance == 0) continue;
        atomicAdd(move + place, distance);
        atomicAdd(move + end[place], -distance);
    }
}

// `moved` is the running sum of the moves.
extern "C" __global__ void reorder(const int* node_at, const int* above, const int* end,
                                   const int* count, const int* moved, int* new_node_at,
                                   int* new_above, int* new_end, long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        const int moved_to = static_cast<int>(place) + moved[place];
        new_node_at[moved_to] = node_at[place];
        new_above[moved_to] = above[place] + moved[above[place]];
        new_end[moved_to] = end[place] + moved[place];
    }
}

// Differences between neighbours of the sort keys.
extern "C" __global__ void mark_chains(const int* above, const int* end, const int* count,
                                       int* difference, long long most, long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    if (thread_index() == 0) atomicAdd(difference + num_nodes, NO_NODE);
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        const bool starts_chain = is_large(end, place, most) && is_light(above, end, place);
        const bool is_small_tree = above[place] == place && !is_large(end, place, most);
        if (!starts_chain && !is_small_tree) continue;
        const int key = starts_chain ? 1 : SMALL_TREE;
        atomicAdd(difference + place, key);
        atomicAdd(difference + end[place], -key);
    }
}

// Fills the slots, and marks those at which a segment starts: where a chain or a tree starts, after
// large subtrees that lie between, and after each piece of a chain that reaches another multiple of
// `most` slots. A piece is a large node, or a whole small subtree.
extern "C" __global__ void fill_slots(const int* node_at, const int* above, const int* end,
                                      const int* count, const long long* place_at, int* row,
                                      int* flags, int* is_start, long long most,
                                      long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    for (long long slot = thread_index(); slot < num_nodes; slot += num_threads()) {
        const long long place = place_at[slot];
        const bool is_root = above[place] == place, large = is_large(end, place, most);
        const bool light = is_light(above, end, place);
        const int size = end[place] - static_cast<int>(place);
        row[slot] = node_at[place];
        if (is_root) atomicOr(flags + slot, ROOT);
        if (light && !large) {
            atomicOr(flags + slot, FIRST);
            atomicOr(flags + slot + size - 1, LAST);
        }
        const bool starts_chain = is_root || (light && large);
        if (starts_chain || place_at[slot - 1] != place - 1) is_start[slot] = 1;
        const bool is_piece = large || (!is_root && is_large(end, above[place], most));
        const long long after = slot + (large ? 1 : size);
        if (is_piece && slot / most != after / most && after < num_nodes) is_start[after] = 1;
    }
}

// `num_started` is the running sum of the marks.
extern "C" __global__ void list_segments(const unsigned char* key, const long long* place_at,
                                         const int* is_start, const int* num_started,
                                         const int* count, int* start, int* counts,
                                         int* is_linked, long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    for (long long slot = thread_index(); slot < num_nodes; slot += num_threads()) {
        const bool in_large_tree = key[slot] < SMALL_TREE;
        if (is_start[slot]) {
            start[num_started[slot] - 1] = static_cast<int>(slot);
            if (in_large_tree) is_linked[place_at[slot]] = 1;
        }
        const bool is_end = slot + 1 == num_nodes;
        if (is_end) {
            start[num_started[slot]] = static_cast<int>(num_nodes);
            counts[0] = num_started[slot];
        }
        if (in_large_tree && (is_end || key[slot + 1] >= SMALL_TREE)) {
            counts[1] = num_started[slot];
        }
    }
}

// The last slot before `slot` whose key is one less and whose place is lower: the chain above.
__device__ inline long long find_slot_above(const unsigned char* key, const long long* place_at,
                                            long long slot) {
    const int wanted_key = key[slot] - 1;
    long long low = 0, high = slot;
    while (high - low > 1) {
        const long long middle = (low + high) / 2;
        const bool is_before = key[middle] < wanted_key ||
                               (key[middle] == wanted_key && place_at[middle] < place_at[slot]);
        if (is_before) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// The segments of trees with large nodes as the nodes of a smaller forest, in its own order.
// `num_linked` is the running sum over places of the marks of their first places.
extern "C" __global__ void link_segments(const unsigned char* key, const long long* place_at,
                                         const int* above, const int* end, const int* is_start,
                                         const int* num_started, const int* start,
                                         const int* num_linked, const int* count,
                                         int* segment_at, int* segment_above, int* segment_end,
                                         long long most, long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    for (long long slot = thread_index(); slot < num_nodes; slot += num_threads()) {
        if (!is_start[slot] || key[slot] >= SMALL_TREE) continue;
        const long long place = place_at[slot];
        const bool is_root = above[place] == place, large = is_large(end, place, most);
        const int position = num_linked[place] - 1;
        int position_above = position;
        if (!is_root) {
            const bool starts_chain = large && is_light(above, end, place);
            const long long slot_above =
                starts_chain ? find_slot_above(key, place_at, slot) : slot - 1;
            position_above = num_linked[place_at[start[num_started[slot_above] - 1]]] - 1;
        }
        segment_at[position] = num_started[slot] - 1;
        segment_above[position] = position_above;
        segment_end[position] = num_linked[(large ? end[place] : end[above[place]]) - 1];
    }
}
