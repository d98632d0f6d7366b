// Scans over the segments of a forest: linear recurrences over trees in a time that does not
// follow their depth.
//
// A segment is a range of places that one thread passes for one channel: a part of a chain with the
// small subtrees that hang from it, nodes before their children (segments.cu cuts them). Along the
// chain every sum that a recurrence makes is affine in the two values that enter the segment: what
// its lowest node hears from below, and what its first node hears from its parent. So
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

template <int NUM_STATES>
struct Values {
    VALUE at[NUM_VECTORS][NUM_STATES];
};

template <int NUM_STATES>
struct Node {
    VALUE transition[NUM_STATES];
    Values<NUM_STATES> up, down;
};

// What a node of the input hands down, given what it hands up: `transition * input`.
__device__ inline VALUE down_of_input(int vector, VALUE input, VALUE transition, VALUE up) {
    return runs_up(vector) && runs_down(vector) ? input - transition * up : input;
}

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
template <int NUM_STATES>
struct Stack {
    Values<NUM_STATES> kept[MOST_NESTED];

    __device__ void push(const Values<NUM_STATES>& values, int& height) { kept[height++] = values; }
    __device__ const Values<NUM_STATES>& pop(int& height) { return kept[--height]; }
};

template <int NUM_STATES>
__device__ inline void set(Values<NUM_STATES>& values, VALUE value) {
    for (int vector = 0; vector < NUM_VECTORS; ++vector) {
        for (int state = 0; state < NUM_STATES; ++state) values.at[vector][state] = value;
    }
}

template <int NUM_STATES>
__device__ inline void add(Values<NUM_STATES>& values, const Values<NUM_STATES>& other) {
    for (int vector = 0; vector < NUM_VECTORS; ++vector) {
        for (int state = 0; state < NUM_STATES; ++state) {
            values.at[vector][state] += other.at[vector][state];
        }
    }
}

template <int NUM_STATES>
__device__ inline Values<NUM_STATES> handed_up(const Node<NUM_STATES>& node,
                                               const Values<NUM_STATES>& sum) {
    Values<NUM_STATES> result;
    for (int vector = 0; vector < NUM_VECTORS; ++vector) {
        for (int state = 0; state < NUM_STATES; ++state) {
            result.at[vector][state] =
                node.up.at[vector][state] + node.transition[state] * sum.at[vector][state];
        }
    }
    return result;
}

template <int NUM_STATES>
__device__ inline void add_to_chain(Node<NUM_STATES>& whole, const Node<NUM_STATES>& node,
                                    const Values<NUM_STATES>& sum) {
    for (int state = 0; state < NUM_STATES; ++state) {
        const VALUE transition = node.transition[state], product = whole.transition[state];
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            VALUE down = node.down.at[vector][state];
            if (runs_up(vector) && runs_down(vector)) {
                const VALUE heard = sum.at[vector][state];
                down += heard - transition * (transition * heard);
            }
            whole.down.at[vector][state] += product * down;
        }
        whole.transition[state] = product * transition;
    }
}

// The rows and flags of the nodes that are loaded before the first of them is used, so that their
// loads are under way together. Beyond the segment its last node stands in: a branch would part
// them.
template <int AHEAD>
struct Batch {
    int row[AHEAD], flags[AHEAD];

    __device__ void set(const Tier& tier, int ahead, int place) {
        row[ahead] = tier.row[place];
        flags[ahead] = tier.flags[place];
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
template <int NUM_STATES, class Nodes, class Visit>
__device__ Values<NUM_STATES> pass_up(Nodes& nodes, const Tier& tier, int segment,
                                      Values<NUM_STATES> sum, Visit visit) {
    Stack<NUM_STATES> stack;
    int height = 0;
    const int first = tier.start[segment];
    for (int end = tier.start[segment + 1]; end > first; end -= Nodes::AHEAD) {
        const Batch<Nodes::AHEAD> batch = batch_upwards<Nodes::AHEAD>(tier, end, first);
        typename Nodes::Loaded loaded[Nodes::AHEAD];
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            loaded[ahead] = nodes.load(batch.row[ahead], batch.flags[ahead] & ROOT);
        }
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            if (end - 1 - ahead < first) continue;
            const int flags = batch.flags[ahead];
            if (flags & ENDS_BRANCH) {
                stack.push(sum, height);
                set(sum, 0);
            }
            const Node<NUM_STATES> node = nodes.make(loaded[ahead]);
            visit(batch.row[ahead], loaded[ahead], node, sum, height == 0);
            sum = handed_up(node, sum);
            if (flags & BEGINS_BRANCH) add(sum, stack.pop(height));
            // Before a root comes another tree.
            if (flags & ROOT) set(sum, 0);
        }
    }
    return sum;
}

// From the first node to the leaves. `nodes.hand_down` gets what every node hears from its
// parent, and returns what it hands down itself.
template <int NUM_STATES, class Nodes>
__device__ void pass_down(Nodes& nodes, const Tier& tier, int segment, Values<NUM_STATES> heard) {
    Stack<NUM_STATES> stack;
    int height = 0;
    const int end = tier.start[segment + 1];
    for (int begin = tier.start[segment]; begin < end; begin += Nodes::AHEAD) {
        const Batch<Nodes::AHEAD> batch = batch_downwards<Nodes::AHEAD>(tier, begin, end);
        typename Nodes::LoadedAgain loaded[Nodes::AHEAD];
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            loaded[ahead] = nodes.load_again(batch.row[ahead], batch.flags[ahead] & ROOT);
        }
#pragma unroll
        for (int ahead = 0; ahead < Nodes::AHEAD; ++ahead) {
            if (begin + ahead >= end) continue;
            const int flags = batch.flags[ahead];
            if (flags & ROOT) set(heard, 0);
            if (flags & BEGINS_BRANCH) stack.push(heard, height);
            heard = nodes.hand_down(batch.row[ahead], loaded[ahead], heard);
            if (flags & ENDS_BRANCH) heard = stack.pop(height);
        }
    }
}

// Leaves a segment as one node: what it hands up and down where nothing enters it, and the product
// of the transitions along its chain. The share of (1 - A^2) s telescopes: it is (1 - A^2) s of the
// whole segment again.
template <int NUM_STATES, class Nodes>
__device__ Node<NUM_STATES> reduce_segment(Nodes& nodes, const Tier& tier, int segment) {
    Node<NUM_STATES> whole;
    Values<NUM_STATES> nothing;
    set(nothing, 0);
    set(whole.down, 0);
    for (int state = 0; state < NUM_STATES; ++state) whole.transition[state] = 1;
    whole.up = pass_up<NUM_STATES>(
        nodes, tier, segment, nothing,
        [&whole](int, const typename Nodes::Loaded&, const Node<NUM_STATES>& node,
                 const Values<NUM_STATES>& sum, bool is_on_chain) {
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

template <int NUM_STATES>
__device__ inline void write_reduced(const Reduced& arrays, int row, long long column,
                                     int num_states, const Node<NUM_STATES>& node) {
    for (int state = 0; state < NUM_STATES; ++state) {
        if (state >= num_states) continue;
        const long long place = arrays.place(row, column + state);
        arrays.transition[place] = node.transition[state];
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (runs_up(vector)) arrays.up[vector][place] = node.up.at[vector][state];
            if (runs_down(vector)) arrays.down[vector][place] = node.down.at[vector][state];
        }
    }
}

// What enters the segment that row `row` of the tier above stands for.
template <int NUM_STATES>
__device__ inline void read_entering(const Reduced& arrays, int row, long long column,
                                     int num_states, Values<NUM_STATES>& sum,
                                     Values<NUM_STATES>& heard) {
    for (int state = 0; state < NUM_STATES; ++state) {
        if (state >= num_states) continue;
        const long long place = arrays.place(row, column + state);
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (runs_up(vector)) sum.at[vector][state] = arrays.up[vector][place];
            if (runs_down(vector)) heard.at[vector][state] = arrays.down[vector][place];
        }
    }
}

// Finishes a segment: what enters it is known, from row `row` of the tier above; nothing enters
// it where that is negative.
template <int NUM_STATES, class Nodes>
__device__ void finish_segment(Nodes& nodes, const Tier& tier, int segment, const Reduced& above,
                               int row, long long column, int num_states) {
    Values<NUM_STATES> sum, heard;
    set(sum, 0);
    set(heard, 0);
    if (row >= 0) read_entering(above, row, column, num_states, sum, heard);
    if (IS_BACKWARD || DIRECTION != DOWN) {
        pass_up<NUM_STATES>(
            nodes, tier, segment, sum,
            [&nodes](int row, const typename Nodes::Loaded& loaded, const Node<NUM_STATES>&,
                     const Values<NUM_STATES>& sum, bool) { nodes.keep(row, loaded, sum); });
    }
    if (IS_BACKWARD || DIRECTION != UP) pass_down<NUM_STATES>(nodes, tier, segment, heard);
}

struct ReducedNodes {
    static const int AHEAD = 4;
    using Loaded = Node<1>;
    using LoadedAgain = Node<1>;
    Reduced arrays;
    long long column;

    __device__ Node<1> load(int row, int) const {
        const long long place = arrays.place(row, column);
        Node<1> node;
        node.transition[0] = arrays.transition[place];
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            node.up.at[vector][0] = runs_up(vector) ? arrays.up[vector][place] : VALUE(0);
            node.down.at[vector][0] = runs_down(vector) ? arrays.down[vector][place] : VALUE(0);
        }
        return node;
    }

    __device__ const Node<1>& make(const Node<1>& node) const { return node; }

    __device__ void keep(int row, const Node<1>&, const Values<1>& sum) const {
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (runs_up(vector)) arrays.up[vector][arrays.place(row, column)] = sum.at[vector][0];
        }
    }

    __device__ Node<1> load_again(int row, int is_root) const { return load(row, is_root); }

    __device__ Values<1> hand_down(int row, const Node<1>& node, const Values<1>& heard) const {
        Values<1> result;
        const VALUE transition = node.transition[0];
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            const VALUE from_above = heard.at[vector][0];
            if (runs_down(vector)) arrays.down[vector][arrays.place(row, column)] = from_above;
            VALUE down = node.down.at[vector][0];
            if (runs_up(vector) && runs_down(vector)) {
                const VALUE sum = node.up.at[vector][0];
                down += sum - transition * (transition * sum);
            }
            result.at[vector][0] = down + transition * from_above;
        }
        return result;
    }
};

// What a thread does on a tier: one column of every `at_once`-th segment. Threads beyond these get
// none.
struct Share {
    Tier tier;
    long long first_segment, at_once, column;
};

__device__ inline Share share_of_thread(const int* plan, long long num_places, long long at_once,
                                        long long num_columns) {
    const long long segment = thread_index() / num_columns;
    return {read_tier(plan, num_places), segment < at_once ? segment : 0x7fffffffLL, at_once,
            thread_index() % num_columns};
}

// Reduces a thread's share, where each of its nodes has one state. Trees that are whole in a
// segment have no node above.
template <class Nodes>
__device__ void reduce(Nodes& nodes, const Share& share, const Reduced& above) {
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += share.at_once) {
        const int row = share.tier.linked_as[segment];
        if (row < 0) continue;
        const Node<1> whole = reduce_segment<1>(nodes, share.tier, segment);
        write_reduced(above, row, share.column, 1, whole);
    }
}

template <class Nodes>
__device__ void finish(Nodes& nodes, const Share& share, const Reduced& above) {
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += share.at_once) {
        const int row = share.tier.linked_as[segment];
        finish_segment<1>(nodes, share.tier, segment, above, row, share.column, 1);
    }
}

extern "C" __global__ void reduce_tier(const int* plan, long long num_places, long long at_once,
                                       VALUE* memory, long long num_rows, VALUE* memory_above,
                                       long long num_rows_above, long long num_columns) {
    const Share share = share_of_thread(plan, num_places, at_once, num_columns);
    ReducedNodes nodes = {reduced_arrays(memory, num_rows, num_columns), share.column};
    reduce(nodes, share, reduced_arrays(memory_above, num_rows_above, num_columns));
}

extern "C" __global__ void finish_tier(const int* plan, long long num_places, long long at_once,
                                       VALUE* memory, long long num_rows, VALUE* memory_above,
                                       long long num_rows_above, long long num_columns) {
    const Share share = share_of_thread(plan, num_places, at_once, num_columns);
    ReducedNodes nodes = {reduced_arrays(memory, num_rows, num_columns), share.column};
    finish(nodes, share, reduced_arrays(memory_above, num_rows_above, num_columns));
}
