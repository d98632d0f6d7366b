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
// smaller forest, the next tier, in its order. On the highest tier no node is large.
//
// The functions stride over their work, so they serve kernels of a large tier, launched one after
// another, as well as one block that cuts all smaller ones.
//
// Compiled for MOST_THREADS_PER_BLOCK, and LINKED_PER_LENGTH: a bound on the segments that are
// linked, of so many nodes as `length` is.
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

// A forest: by place the node, the place above, and where the subtree ends.
struct Places {
    int *node_at, *above, *end;
};

__device__ inline Places read_places(int* memory, long long num_places) {
    return {memory, memory + num_places, memory + 2 * num_places};
}

// What the scans read of a tier, and how many nodes it has: of the input all places are nodes, of
// another one the tier below has counted them, whose plan ends where this one begins.
struct Plan {
    int *row, *flags, *start, *linked_as, *counts;
    long long num_nodes;
};

__device__ inline Plan read_plan(int* memory, long long num_places, bool is_input) {
    int *start = memory + 2 * num_places, *linked_as = start + num_places + 1;
    const long long num_nodes = is_input ? num_places : memory[-1];
    return {memory, memory + num_places, start, linked_as, linked_as + num_places, num_nodes};
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

__device__ void find_heaviest_children(const Places& places, long long num_nodes,
                                       unsigned long long* heaviest) {
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        if (is_root(places.above, place)) continue;
        const unsigned long long size = places.end[place] - place;
        atomicMax(heaviest + places.above[place], size << 32 | place);
    }
}

// How far each subtree moves in the order when the heaviest child of every node becomes its last.
__device__ void move_heaviest_children(const Places& places, long long num_nodes,
                                       const unsigned long long* heaviest, int* move) {
    const int *above = places.above, *end = places.end;
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        if (is_root(above, place)) continue;
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
__device__ void reorder_places(const Places& places, long long num_nodes, const int* moved,
                               const Places& reordered) {
    for (long long place = thread_index(); place < num_nodes; place += num_threads()) {
        const int above = places.above[place];
        const int moved_to = static_cast<int>(place) + moved[place];
        reordered.node_at[moved_to] = places.node_at[place];
        reordered.above[moved_to] = above + moved[above];
        reordered.end[moved_to] = places.end[place] + moved[place];
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
__device__ void mark_starts(const Places& places, const Plan& plan, unsigned long long* starts,
                            int* ended_at, long long most, long long length) {
    const int *above = places.above, *end = places.end;
    for (long long place = thread_index(); place < plan.num_nodes; place += num_threads()) {
        plan.row[place] = places.node_at[place];
        if (place == 0) atomicAdd(starts, one_of(end, place, most));
        if (is_root(above, place)) {
            atomicOr(plan.flags + place, ROOT);
            const long long next = end[place];
            if (next < plan.num_nodes && parts_trees(end, place, next, most, length)) {
                atomicAdd(starts + next, one_of(end, next, most));
            }
        } else if (starts_chain(above, end, place, most)) {
            atomicAdd(starts + place, ONE_LINKED);
            atomicAdd(starts + end[place], ONE_LINKED);
            ended_at[end[place]] = static_cast<int>(place);
        } else if (is_light(above, end, place)) {
            atomicOr(plan.flags + place, BEGINS_BRANCH);
            atomicOr(plan.flags + end[place] - 1, ENDS_BRANCH);
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

__device__ inline void set_linked(const Places& linked, int segment, int above, int end) {
    linked.node_at[segment] = segment;
    linked.above[segment] = above;
    linked.end[segment] = end;
}

// The segments that start at a place as nodes of the next tier.
__device__ inline void link_segments(const Marks& marks, const Places& linked, const int* above,
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
    set_linked(linked, segment, segment_above, marks.last_linked(whole - 1) + 1);
    if (!marks.has_empty(place)) return;
    const int empty_end = marks.last_linked(end[above[place]] - 1) + 1;
    set_linked(linked, segment - 1, marks.before_chain(marks.ended_at[place]), empty_end);
}

__device__ void list_starts(const Places& places, const Plan& plan, const Marks& marks,
                            const Places& linked, long long most) {
    for (long long place = thread_index(); place < plan.num_nodes; place += num_threads()) {
        const int num_segments = num_of(marks.segments[place]);
        const int num_here = num_of(marks.starts[place]);
        const bool is_linked = num_linked_of(marks.starts[place]) > 0;
        const int last = marks.last_linked(place);
        if (place + 1 == plan.num_nodes) {
            plan.start[num_segments] = static_cast<int>(plan.num_nodes);
            plan.counts[0] = num_segments;
            plan.counts[1] = last + 1;
        }
        for (int back = 1; back <= num_here; ++back) {
            plan.start[num_segments - back] = static_cast<int>(place);
            plan.linked_as[num_segments - back] = is_linked ? last + 1 - back : -1;
        }
        if (is_linked) link_segments(marks, linked, places.above, places.end, place, most);
    }
}

// A large tier, one kernel after another. `places` and `linked`, for the next tier, are given as
// arrays one after another.

extern "C" __global__ void find_heaviest(int* places, int* plan, unsigned long long* heaviest,
                                         long long num_places) {
    const long long num_nodes = read_plan(plan, num_places, false).num_nodes;
    find_heaviest_children(read_places(places, num_places), num_nodes, heaviest);
}

extern "C" __global__ void move_heaviest_last(int* places, int* plan,
                                              const unsigned long long* heaviest, int* move,
                                              long long num_places) {
    const long long num_nodes = read_plan(plan, num_places, false).num_nodes;
    move_heaviest_children(read_places(places, num_places), num_nodes, heaviest, move);
}

extern "C" __global__ void reorder(int* places, int* plan, const int* moved, int* reordered,
                                   long long num_places) {
    const long long num_nodes = read_plan(plan, num_places, false).num_nodes;
    reorder_places(read_places(places, num_places), num_nodes, moved,
                   read_places(reordered, num_places));
}

// `ended_at` lies behind `starts`.
extern "C" __global__ void mark_segments(int* places, int* plan, long long is_input,
                                         unsigned long long* starts, long long length,
                                         long long num_places) {
    mark_starts(read_places(places, num_places), read_plan(plan, num_places, is_input), starts,
                reinterpret_cast<int*>(starts + num_places), length, length);
}

extern "C" __global__ void list_segments(int* places, int* plan, long long is_input,
                                         const unsigned long long* starts,
                                         const unsigned long long* segments, int* linked,
                                         long long num_linked, long long length,
                                         long long num_places) {
    const Marks marks = {starts, segments, reinterpret_cast<const int*>(starts + num_places)};
    list_starts(read_places(places, num_places), read_plan(plan, num_places, is_input), marks,
                read_places(linked, num_linked), length);
}

// All smaller tiers, in one block.

// The running sum of so many values, by all threads of the block: each sums a run of them up, then
// the runs before its own, of its warp one by one and of other warps together.
template <class T>
__device__ void sum_up(const T* values, T* sums, long long num_values) {
    __shared__ T totals[MOST_THREADS_PER_BLOCK], totals_of_warps[MOST_THREADS_PER_BLOCK / 32];
    const int thread = threadIdx.x, warp = thread / 32;
    const long long size = (num_values + blockDim.x - 1) / blockDim.x;
    const long long begin = min(thread * size, num_values), end = min(begin + size, num_values);
    T total = 0, before = 0;
    for (long long i = begin; i < end; ++i) total += values[i];
    totals[thread] = total;
    __syncthreads();
    for (int other = 32 * warp; other < thread; ++other) before += totals[other];
    if (thread % 32 == 31) totals_of_warps[warp] = before + total;
    __syncthreads();
    for (int other = 0; other < warp; ++other) before += totals_of_warps[other];
    for (long long i = begin; i < end; ++i) sums[i] = before += values[i];
    __syncthreads();
}

template <class T>
__device__ void set_to_zero(T* values, long long num_values) {
    for (long long i = thread_index(); i < num_values; i += num_threads()) values[i] = 0;
}

// What one block needs by the way, for tiers of so many places.
struct Memory {
    unsigned long long *marks, *segments;
    Places linked, reordered;
    int* moves;
};

__device__ inline Memory read_memory(unsigned long long* memory, long long num_places) {
    int* places = reinterpret_cast<int*>(memory + 2 * num_places);
    return {memory, memory + num_places, read_places(places, num_places),
            read_places(places + 3 * num_places, num_places), places + 6 * num_places};
}

// Puts the largest child's subtree last everywhere.
__device__ void reorder_in_block(const Places& places, long long num_nodes, const Memory& memory) {
    set_to_zero(memory.marks, num_nodes);
    set_to_zero(memory.moves, num_nodes + 1);
    __syncthreads();
    find_heaviest_children(places, num_nodes, memory.marks);
    __syncthreads();
    move_heaviest_children(places, num_nodes, memory.marks, memory.moves);
    __syncthreads();
    sum_up(memory.moves, memory.moves, num_nodes);
    reorder_places(places, num_nodes, memory.moves, memory.reordered);
    __syncthreads();
}

__device__ void cut_in_block(const Places& places, const Plan& plan, const Memory& memory,
                             long long most, long long length) {
    set_to_zero(memory.marks, plan.num_nodes);
    set_to_zero(memory.moves, plan.num_nodes);
    __syncthreads();
    mark_starts(places, plan, memory.marks, memory.moves, most, length);
    __syncthreads();
    sum_up(memory.marks, memory.segments, plan.num_nodes);
    const Marks marks = {memory.marks, memory.segments, memory.moves};
    list_starts(places, plan, marks, memory.linked, most);
    __syncthreads();
}

// Cuts the tier of the given places and all above it, up to the first of at most `few` places. How
// many places a tier has follows from the one below, as in groot_graph/ops/cuda/plan.py.
extern "C" __global__ void __launch_bounds__(MOST_THREADS_PER_BLOCK)
    cut_tiers(int* first_places, int* plan_memory, long long is_input,
              unsigned long long* working_memory, long long length, long long few,
              long long num_places) {
    const Memory memory = read_memory(working_memory, num_places);
    Places places = read_places(first_places, num_places);
    while (true) {
        const Plan plan = read_plan(plan_memory, num_places, is_input);
        if (!is_input) {
            reorder_in_block(places, plan.num_nodes, memory);
            places = memory.reordered;
        }
        const bool is_highest = num_places <= few;
        cut_in_block(places, plan, memory, is_highest ? num_places + 1 : length, length);
        if (is_highest) return;
        places = memory.linked;
        plan_memory += 4 * num_places + 3;
        num_places = LINKED_PER_LENGTH * num_places / length;
        is_input = false;
    }
}
