// Scans over the segments of a forest: linear recurrences over trees in a time that does not
// follow their depth.
//
// A segment is a range of places that one thread passes for some of the columns, which are the
// recurrences of a node side by side: a part of a chain with the small subtrees that hang from it,
// nodes before their children (segments.cu cuts them). Along the chain every sum that a recurrence
// makes is affine in the two values that enter the segment: what its lowest node hears from below,
// and what its first node hears from its parent. So
//
//   reduce   passes every segment once and leaves it as one node of a smaller forest;
//   finish   passes it again once those two values are known, from the smaller forest's own finish.
//
// The smallest forest has only whole trees as segments, and nothing enters them.
//
// A node has a transition A, an input `up` and an input `down`. With s the sum of what the node's
// children hand up, the node hands up `up + A s` to its parent. With g what the parent hands down,
// the node hands down `down + A g`; in direction "both", `down + (1 - A^2) s + A g`, because what
// the parent hands down counts the node's own subtree too. For a node of the input, with input x:
// up = A x, down = x, and (1 - A^2) x in direction "both".
//
// Compiled for one VALUE (float or double), one DIRECTION, forward or IS_BACKWARD, and MOST_NESTED,
// how many subtrees can hang from one another inside a segment.
#include "common.cuh"
#include "segment_flags.cuh"

enum Direction { BOTH, UP, DOWN };

// A backward pass runs two recurrences at once: that of the forward pass, and its transpose on the
// gradient.
const int NUM_VECTORS = IS_BACKWARD ? 2 : 1;

__device__ constexpr bool runs_up(int vector) {
    return vector == 0 ? DIRECTION != DOWN : DIRECTION != UP;
}

__device__ constexpr bool runs_down(int vector) {
    return vector == 0 ? DIRECTION != UP : DIRECTION != DOWN;
}

// One forest of the hierarchy, as cut by segments.cu.
struct Tier {
    const int* row;        // by place: the node's row in the tier's arrays
    const int* flags;      // by place
    const int* start;      // by segment: its first place
    const int* linked_as;  // by segment: its row in the next tier, or -1
    int num_segments;
};

__device__ inline Tier read_tier(const int* plan, long long num_places) {
    const int* start = plan + 2 * num_places;
    const int* linked_as = start + num_places + 1;
    return {plan, plan + num_places, start, linked_as, linked_as[num_places]};
}

template <int NUM_COLUMNS>
struct Values {
    VALUE at[NUM_VECTORS][NUM_COLUMNS];
};

// A node of the input, and what it puts into each recurrence.
template <int NUM_COLUMNS>
struct InputNode {
    VALUE transition[NUM_COLUMNS];
    Values<NUM_COLUMNS> input;

    // What the node hands up, given the sum of what its children hand up.
    __device__ VALUE up_given(int vector, int column, VALUE sum) const {
        return transition[column] * (input.at[vector][column] + sum);
    }

    // What it hands down besides what it hears from its parent.
    __device__ VALUE down_given(int vector, int column, VALUE sum) const {
        if (!runs_up(vector)) return input.at[vector][column];
        const VALUE own = input.at[vector][column] + sum;
        return own - transition[column] * (transition[column] * own);
    }
};

// A segment as a node of the tier above: what it hands up and down where nothing enters it.
template <int NUM_COLUMNS>
struct ReducedNode {
    VALUE transition[NUM_COLUMNS];
    Values<NUM_COLUMNS> up, down;

    __device__ VALUE up_given(int vector, int column, VALUE sum) const {
        return up.at[vector][column] + transition[column] * sum;
    }

    __device__ VALUE down_given(int vector, int column, VALUE sum) const {
        if (!runs_up(vector)) return down.at[vector][column];
        return down.at[vector][column] + sum - transition[column] * (transition[column] * sum);
    }
};

// What reaches a node over the edge to its parent, without its own subtree, and the node's sum.
struct Arrived {
    VALUE from_outside, sum;
};

// `own` is the sum of the node's subtree, or its input where nothing runs up.
__device__ inline Arrived arrived(int vector, VALUE own, VALUE transition, VALUE heard) {
    if (!runs_down(vector)) return {0, own};
    const VALUE from_outside = runs_up(vector) ? heard - transition * own : heard;
    return {from_outside, own + transition * from_outside};
}

// The sums of the chains that a pass has left for a subtree, innermost last. Their number is kept
// outside, in a register: an array that is indexed by a variable is not.
template <int NUM_COLUMNS>
struct Stack {
    Values<NUM_COLUMNS> kept[MOST_NESTED];

    __device__ void push(const Values<NUM_COLUMNS>& values, int& height) {
        kept[height++] = values;
    }
    __device__ const Values<NUM_COLUMNS>& pop(int& height) { return kept[--height]; }
};

template <int NUM_COLUMNS>
__device__ inline void set(Values<NUM_COLUMNS>& values, VALUE value) {
    for (int vector = 0; vector < NUM_VECTORS; ++vector) {
        for (int column = 0; column < NUM_COLUMNS; ++column) values.at[vector][column] = value;
    }
}

template <int NUM_COLUMNS>
__device__ inline void set(VALUE (&transition)[NUM_COLUMNS], VALUE value) {
    for (int column = 0; column < NUM_COLUMNS; ++column) transition[column] = value;
}

template <int NUM_COLUMNS>
__device__ inline void add(Values<NUM_COLUMNS>& values, const Values<NUM_COLUMNS>& other) {
    for (int vector = 0; vector < NUM_VECTORS; ++vector) {
        for (int column = 0; column < NUM_COLUMNS; ++column) {
            values.at[vector][column] += other.at[vector][column];
        }
    }
}

// The sum of a node's chain becomes what the node hands up.
template <class Node, int NUM_COLUMNS>
__device__ inline void hand_up(const Node& node, Values<NUM_COLUMNS>& sum) {
    for (int vector = 0; vector < NUM_VECTORS; ++vector) {
        for (int column = 0; column < NUM_COLUMNS; ++column) {
            VALUE& value = sum.at[vector][column];
            value = node.up_given(vector, column, value);
        }
    }
}

template <class Node, int NUM_COLUMNS>
__device__ inline void add_to_chain(ReducedNode<NUM_COLUMNS>& whole, const Node& node,
                                    const Values<NUM_COLUMNS>& sum) {
    for (int column = 0; column < NUM_COLUMNS; ++column) {
        VALUE& product = whole.transition[column];
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            whole.down.at[vector][column] +=
                product * node.down_given(vector, column, sum.at[vector][column]);
        }
        product *= node.transition[column];
    }
}

// The places, rows and flags of the nodes that are loaded before the first of them is used, so that
// their loads are under way together. Beyond the segment its last node stands in: a branch would
// part them.
template <int AHEAD>
struct Batch {
    int place[AHEAD], row[AHEAD], flags[AHEAD];

    __device__ void set(const Tier& tier, int ahead, int at) {
        place[ahead] = at;
        row[ahead] = tier.row[at];
        flags[ahead] = tier.flags[at];
    }
};

template <int AHEAD>
__device__ inline Batch<AHEAD> batch_upwards(const Tier& tier, int end, int first) {
    Batch<AHEAD> batch;
#pragma unroll
    for (int ahead = 0; ahead < AHEAD; ++ahead) {
        batch.set(tier, ahead, end - 1 - ahead > first ? end - 1 - ahead : first);
    }
    return batch;
}

template <int AHEAD>
__device__ inline Batch<AHEAD> batch_downwards(const Tier& tier, int begin, int end) {
    Batch<AHEAD> batch;
#pragma unroll
    for (int ahead = 0; ahead < AHEAD; ++ahead) {
        batch.set(tier, ahead, begin + ahead < end ? begin + ahead : end - 1);
    }
    return batch;
}

// From the leaves to the first node. `visit` gets every node with the sum of what it hears
// from its children, and whether it is on the segment's chain; returns what the first node hands
// up.
template <class Nodes, class Visit>
__device__ Values<Nodes::NUM_COLUMNS> pass_up(Nodes& nodes, const Tier& tier, int segment,
                                              Values<Nodes::NUM_COLUMNS> sum, Visit visit) {
    Stack<Nodes::NUM_COLUMNS> stack;
    int height = 0;
    const int first = tier.start[segment];
    for (int end = tier.start[segment + 1]; end > first; end -= Nodes::AHEAD) {
        const Batch<Nodes::AHEAD> batch = batch_upwards<Nodes::AHEAD>(tier, end, first);
        typename Nodes::Loaded loaded[Nodes::AHEAD];
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            loaded[ahead] = nodes.load(batch.row[ahead]);
        }
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            if (end - 1 - ahead < first) continue;
            const int flags = batch.flags[ahead];
            typename Nodes::Node node = nodes.make(loaded[ahead]);
            // Most nodes have no flags, so that one question has to do for all.
            if (flags) {
                if (flags & ENDS_BRANCH) {
                    stack.push(sum, height);
                    set(sum, 0);
                }
                // No edge leads up from a root, whatever stands where its transition would.
                if (flags & ROOT) set(node.transition, 0);
            }
            visit(batch.row[ahead], batch.place[ahead], loaded[ahead], node, sum, height == 0);
            hand_up(node, sum);
            if (flags) {
                if (flags & BEGINS_BRANCH) add(sum, stack.pop(height));
                // Before a root comes another tree.
                if (flags & ROOT) set(sum, 0);
            }
        }
    }
    return sum;
}

// From the first node to the leaves. `nodes.hand_down` gets what every node hears from its
// parent, and makes of it what the node hands down itself.
template <class Nodes>
__device__ void pass_down(Nodes& nodes, const Tier& tier, int segment,
                          Values<Nodes::NUM_COLUMNS> heard) {
    Stack<Nodes::NUM_COLUMNS> stack;
    int height = 0;
    const int end = tier.start[segment + 1];
    for (int begin = tier.start[segment]; begin < end; begin += Nodes::AHEAD) {
        const Batch<Nodes::AHEAD> batch = batch_downwards<Nodes::AHEAD>(tier, begin, end);
        typename Nodes::LoadedAgain loaded[Nodes::AHEAD];
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            loaded[ahead] = nodes.load_again(batch.row[ahead], batch.place[ahead]);
        }
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            if (begin + ahead >= end) continue;
            const int flags = batch.flags[ahead];
            if (flags) {
                if (flags & ROOT) set(heard, 0);
                if (flags & BEGINS_BRANCH) stack.push(heard, height);
            }
            nodes.hand_down(batch.row[ahead], batch.place[ahead], loaded[ahead], flags & ROOT,
                            heard);
            if (flags & ENDS_BRANCH) heard = stack.pop(height);
        }
    }
}

// Leaves a segment as one node: what it hands up and down where nothing enters it, and the product
// of the transitions along its chain. The share of (1 - A^2) s telescopes: it is (1 - A^2) s of the
// whole segment again.
template <class Nodes>
__device__ ReducedNode<Nodes::NUM_COLUMNS> reduce_segment(Nodes& nodes, const Tier& tier,
                                                          int segment) {
    using Sums = Values<Nodes::NUM_COLUMNS>;
    ReducedNode<Nodes::NUM_COLUMNS> whole;
    Sums nothing;
    set(nothing, 0);
    set(whole.down, 0);
    set(whole.transition, 1);
    whole.up =
        pass_up(nodes, tier, segment, nothing,
                [&whole](int, int, const typename Nodes::Loaded&, const typename Nodes::Node& node,
                         const Sums& sum, bool is_on_chain) {
                    if (is_on_chain) add_to_chain(whole, node, sum);
                });
    return whole;
}

// The nodes of a tier above the input: an array of transitions, and for every recurrence one for
// what is handed up and one for what is handed down, where it runs that way. What enters a segment
// takes the place of the inputs that are read for the last time.
struct Reduced {
    VALUE* transition;
    VALUE* up[2];
    VALUE* down[2];
    long long num_columns;

    __device__ long long place(int row, long long column) const {
        return row * num_columns + column;
    }
};

__device__ inline Reduced reduced_arrays(VALUE* memory, long long num_rows, long long num_columns) {
    Reduced arrays = {memory, {}, {}, num_columns};
    VALUE* next = memory;
    for (int vector = 0; vector < NUM_VECTORS; ++vector) {
        if (runs_up(vector)) arrays.up[vector] = next += num_rows * num_columns;
        if (runs_down(vector)) arrays.down[vector] = next += num_rows * num_columns;
    }
    return arrays;
}

// The columns of an array that a thread passes: of those that it has room for, so many exist.
struct Columns {
    long long first;
    int distance, number;

    __device__ long long operator[](int column) const { return first + column * distance; }
};

template <int NUM_COLUMNS>
__device__ inline void write_reduced(const Reduced& arrays, int row, const Columns& columns,
                                     const ReducedNode<NUM_COLUMNS>& node) {
    for (int column = 0; column < NUM_COLUMNS; ++column) {
        if (column >= columns.number) continue;
        const long long place = arrays.place(row, columns[column]);
        arrays.transition[place] = node.transition[column];
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (runs_up(vector)) arrays.up[vector][place] = node.up.at[vector][column];
            if (runs_down(vector)) arrays.down[vector][place] = node.down.at[vector][column];
        }
    }
}

// What enters the segment that row `row` of the tier above stands for.
template <int NUM_COLUMNS>
__device__ inline void read_entering(const Reduced& arrays, int row, const Columns& columns,
                                     Values<NUM_COLUMNS>& sum, Values<NUM_COLUMNS>& heard) {
    for (int column = 0; column < NUM_COLUMNS; ++column) {
        if (column >= columns.number) continue;
        const long long place = arrays.place(row, columns[column]);
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (runs_up(vector)) sum.at[vector][column] = arrays.up[vector][place];
            if (runs_down(vector)) heard.at[vector][column] = arrays.down[vector][place];
        }
    }
}

// Finishes a segment: what enters it is known, from row `row` of the tier above; nothing enters
// it where that is negative.
template <class Nodes>
__device__ void finish_segment(Nodes& nodes, const Tier& tier, int segment, const Reduced& above,
                               int row, const Columns& columns) {
    using Sums = Values<Nodes::NUM_COLUMNS>;
    Sums sum, heard;
    set(sum, 0);
    set(heard, 0);
    if (row >= 0) read_entering(above, row, columns, sum, heard);
    if (IS_BACKWARD || DIRECTION != DOWN) {
        pass_up(nodes, tier, segment, sum,
                [&nodes](int row, int place, const typename Nodes::Loaded& loaded,
                         const typename Nodes::Node& node, const Sums& sum,
                         bool) { nodes.keep(row, place, loaded, node, sum); });
    }
    if (IS_BACKWARD || DIRECTION != UP) pass_down(nodes, tier, segment, heard);
}

struct ReducedNodes {
    static const int NUM_COLUMNS = 1;
    static const int AHEAD = 8;
    using Node = ReducedNode<1>;
    using Loaded = Node;
    using LoadedAgain = Node;
    Reduced arrays;
    long long column;

    __device__ Node load(int row) const {
        const long long place = arrays.place(row, column);
        Node node;
        node.transition[0] = arrays.transition[place];
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            node.up.at[vector][0] = runs_up(vector) ? arrays.up[vector][place] : VALUE(0);
            node.down.at[vector][0] = runs_down(vector) ? arrays.down[vector][place] : VALUE(0);
        }
        return node;
    }

    __device__ const Node& make(const Node& node) const { return node; }

    __device__ void keep(int row, int, const Node&, const Node&, const Values<1>& sum) const {
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (runs_up(vector)) arrays.up[vector][arrays.place(row, column)] = sum.at[vector][0];
        }
    }

    __device__ Node load_again(int row, int) const { return load(row); }

    __device__ void hand_down(int row, int, const Node& node, int, Values<1>& heard) const {
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            VALUE& value = heard.at[vector][0];
            if (runs_down(vector)) arrays.down[vector][arrays.place(row, column)] = value;
            // The sum of what the node hears from its children has taken the place of `up`.
            value = node.down_given(vector, 0, node.up.at[vector][0]) + node.transition[0] * value;
        }
    }
};

// What a thread does on a tier: some columns of every `at_once`-th segment. `num_lanes`
// neighbouring threads have a segment, each `per_lane` columns of it, at equal distances.
struct Share {
    Tier tier;
    long long first_segment, at_once;
    Columns columns;
};

template <int num_lanes, int per_lane>
__device__ inline Share share_of_thread(const int* plan, long long num_places, long long at_once,
                                        long long num_columns) {
    const long long across = (num_columns + num_lanes * per_lane - 1) / (num_lanes * per_lane);
    const long long group = thread_index() / num_lanes, segment = group / across;
    const long long column = group % across * (num_lanes * per_lane) + thread_index() % num_lanes;
    const long long left = (num_columns - column + num_lanes - 1) / num_lanes;
    const int number = left < per_lane ? static_cast<int>(left) : per_lane;
    const bool has_work = segment < at_once && number > 0;
    return {read_tier(plan, num_places),
            has_work ? segment : 0x7fffffffLL,
            at_once,
            {column, num_lanes, number}};
}

// Reduces a thread's share. Trees that are whole in a segment have no node above.
template <class Nodes>
__device__ void reduce(Nodes& nodes, const Share& share, const Reduced& above) {
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += share.at_once) {
        const int row = share.tier.linked_as[segment];
        if (row < 0) continue;
        write_reduced(above, row, share.columns, reduce_segment(nodes, share.tier, segment));
    }
}

template <class Nodes>
__device__ void finish(Nodes& nodes, const Share& share, const Reduced& above) {
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += share.at_once) {
        const int row = share.tier.linked_as[segment];
        finish_segment(nodes, share.tier, segment, above, row, share.columns);
    }
}

extern "C" __global__ void reduce_tier(const int* plan, long long num_places, long long at_once,
                                       VALUE* memory, long long num_rows, VALUE* memory_above,
                                       long long num_rows_above, long long num_columns) {
    const Share share = share_of_thread<1, 1>(plan, num_places, at_once, num_columns);
    ReducedNodes nodes = {reduced_arrays(memory, num_rows, num_columns), share.columns.first};
    reduce(nodes, share, reduced_arrays(memory_above, num_rows_above, num_columns));
}

extern "C" __global__ void finish_tier(const int* plan, long long num_places, long long at_once,
                                       VALUE* memory, long long num_rows, VALUE* memory_above,
                                       long long num_rows_above, long long num_columns) {
    const Share share = share_of_thread<1, 1>(plan, num_places, at_once, num_columns);
    ReducedNodes nodes = {reduced_arrays(memory, num_rows, num_columns), share.columns.first};
    finish(nodes, share, reduced_arrays(memory_above, num_rows_above, num_columns));
}
