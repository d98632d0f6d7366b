// Cuts an ordered forest into segments of bounded length, for scans whose time does not follow the
// depth of the trees. See segments.cuh for how segments are scanned.
//
// A forest is given by its places in an order in which a subtree is a range of places: the place
// `above` each, its own at a root, and the place where its subtree ends. The largest child's
// subtree comes last.
//
// A node is large where its subtree has more than `most` nodes. Large nodes form chains, each going
// on to the last child. A chain is made of pieces, which are large nodes and the whole small
// subtrees that hang from them; light large children start chains of their own, which lie between
// the pieces. A segment is a range of pieces; it starts where a chain starts, behind every chain
// that lies between, and behind every piece that reaches another multiple of `most` places. Where
// two chains follow each other, the segment between them is empty. So segments have fewer than 2
// `most` nodes, and what enters one from below enters it at its last large node.
//
// Trees without large nodes are whole in a segment, several together until they reach another
// multiple of `length` places. The segments of all others are linked: they are the nodes of a
// smaller forest, in its order.
#include "common.cuh"
#include "segment_flags.cuh"

// How many segments start at a place, and how many of them are linked, as one number to sum up.
const unsigned long long ONE_SEGMENT = 1, ONE_LINKED = 1ULL << 32 | ONE_SEGMENT;

__device__ inline int num_of(unsigned long long segments) {
    return static_cast<int>(segments & 0xffffffffULL);
}

__device__ inline int num_linked_of(unsigned long long segments) {
    return static_cast<int>(segments >> 32);
}

__device__ inline long long num_present(const int* count, long long num_places) {
    return count == nullptr ? num_places : *count;
}

__device__ inline bool is_large(const int* end, long long place, long long most) {
    return end[place] - place > most;
}

__device__ inline bool is_root(const int* above, long long place) { return above[place] == place; }

// A child that does not go on its parent's chain.
__device__ inline bool is_light(const int* above, const int* end, long long place) {
    return !is_root(above, place) && end[place] != end[above[place]];
}

__device__ inline bool starts_chain(const int* above, const int* end, long long place,
                                    long long most) {
    return is_large(end, place, most) && is_light(above, end, place);
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

// Where the piece at a place is followed by another one of its chain, that one's place, else -1.
__device__ inline long long next_piece(const int* above, const int* end, long long place,
                                       long long most) {
    const bool large = is_large(end, place, most);
    const bool hangs = !large && is_light(above, end, place) && is_large(end, above[place], most);
    if (!large && !hangs) return -1;
    const long long next = large ? place + 1 : end[place];
    return starts_chain(above, end, next, most) ? -1 : next;
}

// The segment that starts with a tree.
__device__ inline unsigned long long one_of(const int* end, long long root, long long most) {
    return is_large(end, root, most) ? ONE_LINKED : ONE_SEGMENT;
}

__device__ inline bool parts_trees(const int* end, long long root, long long next, long long most,
                                   long long length) {
    return is_large(end, root, most) || is_large(end, next, most) || root / length != next / length;
}

// Fills rows and flags, and marks where segments start. `ended_at` names the chain that ends at a
// place between the pieces of another.
extern "C" __global__ void mark_segments(const int* node_at, const int* above, const int* end,
                                         const int* count, int* row, int* flags,
                                         unsigned long long* starts, int* ended_at, long long most,
                                         long long length, long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        row[place] = node_at[place];
        if (place == 0) atomicAdd(starts, one_of(end, place, most));
        if (is_root(above, place)) {
            atomicOr(flags + place, ROOT);
            const long long next = end[place];
            if (next < num_nodes && parts_trees(end, place, next, most, length)) {
                atomicAdd(starts + next, one_of(end, next, most));
            }
        } else if (starts_chain(above, end, place, most)) {
            atomicAdd(starts + place, ONE_LINKED);
            atomicAdd(starts + end[place], ONE_LINKED);
            ended_at[end[place]] = static_cast<int>(place);
        } else if (is_light(above, end, place)) {
            atomicOr(flags + place, BEGINS_BRANCH);
            atomicOr(flags + end[place] - 1, ENDS_BRANCH);
        }
        const long long next = next_piece(above, end, place, most);
        if (next >= 0 && place / most != next / most) atomicAdd(starts + next, ONE_LINKED);
    }
}

// `segments` is the running sum of `starts`. Of two segments that start at a place the first is
// empty.
struct Marks {
    const unsigned long long* starts;
    const unsigned long long* segments;
    const int* ended_at;

    __device__ bool has_empty(long long place) const { return num_of(starts[place]) == 2; }

    __device__ int last_linked(long long place) const { return num_linked_of(segments[place]) - 1; }

    // The segment of the chain above that lies before a chain.
    __device__ int before_chain(long long place) const {
        return has_empty(place) ? last_linked(place) - 1 : last_linked(place - 1);
    }
};

// The segments as nodes of a smaller forest: what is above them, and where their subtrees end.
struct Linked {
    int* node_at;
    int* above;
    int* end;

    __device__ void set(int segment, int segment_above, int segment_end) const {
        node_at[segment] = segment;
        above[segment] = segment_above;
        end[segment] = segment_end;
    }
};

__device__ inline void link_segments(const Marks& marks, const Linked& linked, const int* above,
                                     const int* end, long long place, long long most) {
    const int segment = marks.last_linked(place);
    const bool large = is_large(end, place, most);
    const long long whole = large ? end[place] : end[above[place]];
    int segment_above = marks.last_linked(place - (place > 0));
    if (is_root(above, place)) {
        segment_above = segment;
    } else if (starts_chain(above, end, place, most)) {
        segment_above = marks.before_chain(place);
    } else if (marks.ended_at[place] > 0) {
        segment_above = marks.before_chain(marks.ended_at[place]);
    }
    linked.set(segment, segment_above, marks.last_linked(whole - 1) + 1);
    if (!marks.has_empty(place)) return;
    const int empty_end = marks.last_linked(end[above[place]] - 1) + 1;
    linked.set(segment - 1, marks.before_chain(marks.ended_at[place]), empty_end);
}

extern "C" __global__ void list_segments(const int* above, const int* end, const int* count,
                                         const unsigned long long* starts,
                                         const unsigned long long* segments, const int* ended_at,
                                         int* start, int* linked_as, int* counts,
                                         int* linked_node_at, int* linked_above, int* linked_end,
                                         long long most, long long num_places) {
    const long long num_nodes = num_present(count, num_places);
    const Marks marks = {starts, segments, ended_at};
    const Linked linked = {linked_node_at, linked_above, linked_end};
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        const int num_segments = num_of(segments[place]), num_here = num_of(starts[place]);
        const bool is_linked = num_linked_of(starts[place]) > 0;
        if (place + 1 == num_nodes) {
            start[num_segments] = static_cast<int>(num_nodes);
            counts[0] = num_segments;
            counts[1] = num_linked_of(segments[place]);
        }
        for (int back = 1; back <= num_here; ++back) {
            start[num_segments - back] = static_cast<int>(place);
            linked_as[num_segments - back] = is_linked ? marks.last_linked(place) + 1 - back : -1;
        }
        if (is_linked) link_segments(marks, linked, above, end, place, most);
    }
}
