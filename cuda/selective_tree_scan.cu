// The selective tree scan and its gradients, over the segments of a forest. Inputs and transitions
// are made on the way,
//
//   x_i = delta_i u_i B_i,   a_i = exp(step_i A),   y_i = C_i h_i + D u_i,
//
// where step is transition_delta, or delta where that is not given. The states of all nodes are
// never in memory together: a thread passes a segment for STATES_AT_ONCE states of a channel after
// the others, and keeps what it needs again, the sums of NUM_KEPT recurrences on their way up, only
// until it goes on to others.
//
// Compiled for one VALUE (float or double), one INPUT (VALUE, or a half type where it is float),
// one DIRECTION, forward or IS_BACKWARD, STATES_AT_ONCE, CHUNK_SIZE, the bytes of B and C for one
// access, HAS_SUMS, which says that there are more states, NUM_KEPT, and GROUP_SIZE, the number of
// neighbouring channels whose gradients of B and C are added up on the spot; HAS_PADDING says that
// there are fewer in the last group, and HAS_STEP that there is a step beside delta.
#include "segments.cuh"

// What all states add to: forward y; backward the gradients of delta u, then of step.
const int NUM_SUMS = IS_BACKWARD ? 2 : 1;
// The last recurrence, backward that of the gradient.
const int LAST = NUM_VECTORS - 1;

struct Operands {
    const INPUT* u;
    const INPUT* delta;
    const INPUT* step;  // only where HAS_STEP says so
    const INPUT* B;
    const INPUT* C;
    const INPUT* grad;  // backward only
    const VALUE* A;
    const VALUE* D;  // may be null
    long long num_nodes, num_channels, num_states;
};

struct Results {
    INPUT* y;  // forward only
    INPUT* grad_u;
    INPUT* grad_delta;
    INPUT* grad_step;
    VALUE* grad_A;  // [at_once, num_channels, num_states]
    VALUE* grad_B;  // [groups of channels, num_nodes, num_states]
    VALUE* grad_C;
};

// The states at once of a node and channel, kept from the pass up for the pass down.
struct alignas(STATES_AT_ONCE * sizeof(VALUE) < 16 ? STATES_AT_ONCE * sizeof(VALUE) : 16) States {
    VALUE at[STATES_AT_ONCE];
};

// Room for what is kept of nodes.
struct Kept {
    States* states;  // [rows, NUM_KEPT, num_channels]
    VALUE* sums;     // [rows, NUM_SUMS, num_channels], what the states so far have added up to
    int longest;     // how many rows each of the segments at once has, unless every node has one
};

__device__ inline float exponential(float exponent) { return exp2f(exponent); }
__device__ inline double exponential(double exponent) { return exp2(exponent); }

// exp(t) = 2^(t log2 e): the factor goes into A once instead of into every exponent.
__device__ inline VALUE binary_rate(VALUE rate) { return rate * VALUE(1.4426950408889634074); }

// Adds values up over a group of neighbouring threads. With every exchange a thread gives away
// half of what it has to add up, so that it is left with the sums of a few: `left_values` of them,
// from `first_left_value` on, the same in `alike` neighbouring threads.
template <int NUM_VALUES>
struct GroupSum {
    static const int left_values = NUM_VALUES > GROUP_SIZE ? NUM_VALUES / GROUP_SIZE : 1;
    static const int alike = NUM_VALUES < GROUP_SIZE ? GROUP_SIZE / NUM_VALUES : 1;

    __device__ static int first_left_value() {
        return threadIdx.x % GROUP_SIZE / alike * left_values;
    }

    __device__ static void add_up(VALUE (&values)[NUM_VALUES]) {
        const unsigned int all = GROUP_SIZE == 32 ? 0xffffffffu : (1u << GROUP_SIZE % 32) - 1;
        exchange<NUM_VALUES, GROUP_SIZE / 2>(values,
                                             all << (threadIdx.x % 32 / GROUP_SIZE * GROUP_SIZE));
    }

    // With the thread so far away, of so many values that are left.
    template <int NUMBER, int DISTANCE>
    __device__ static void exchange(VALUE (&values)[NUM_VALUES], unsigned int mask) {
        if constexpr (DISTANCE > 0 && NUMBER == 1) {
            values[0] += __shfl_xor_sync(mask, values[0], DISTANCE);
            exchange<1, DISTANCE / 2>(values, mask);
        } else if constexpr (DISTANCE > 0) {
            const int half = NUMBER / 2;
            const bool keeps_upper = threadIdx.x & DISTANCE;
            for (int i = 0; i < half; ++i) {
                const VALUE given = keeps_upper ? values[i] : values[half + i];
                const VALUE kept = keeps_upper ? values[half + i] : values[i];
                values[i] = kept + __shfl_xor_sync(mask, given, DISTANCE);
            }
            exchange<half, DISTANCE / 2>(values, mask);
        }
    }
};

// A part of a row of B or C, for one access.
struct alignas(CHUNK_SIZE) Chunk {
    static const int SIZE = CHUNK_SIZE / sizeof(INPUT);
    INPUT at[SIZE];
};

// The states at once; those beyond `num_states` are 0, and there are none where chunks have
// several.
__device__ inline void read_states(const INPUT* from, int num_states, VALUE* states) {
#pragma unroll
    for (int state = 0; state < STATES_AT_ONCE; ++state) {
        if (Chunk::SIZE > 1) {
            const Chunk chunk = reinterpret_cast<const Chunk*>(from)[state / Chunk::SIZE];
            states[state] = to_value(chunk.at[state % Chunk::SIZE]);
        } else {
            states[state] = state < num_states ? to_value(from[state]) : VALUE(0);
        }
    }
}

struct InputNodes {
    static const int NUM_COLUMNS = STATES_AT_ONCE;
    using Node = InputNode<STATES_AT_ONCE>;
    using Sums = Values<STATES_AT_ONCE>;
    // Fewer where every node brings the registers of many states.
    static const int AHEAD = STATES_AT_ONCE > 1 ? 2 : 4;

    struct Loaded {
        VALUE u, delta, step, grad;
        VALUE B[STATES_AT_ONCE], C[STATES_AT_ONCE];
    };

    // With the sums of the pass up, where it is kept.
    struct LoadedAgain : Loaded {
        Sums own;
    };

    Operands operands;
    Results results;
    Kept kept;
    long long at_once, slot;  // of the segments that are passed at once
    long long channel;
    bool is_padding;  // beyond the last channel, only there to complete a group
    long long first_state;
    long long first_kept;  // the row of `kept` that is the first node's of the forest
    VALUE rate[STATES_AT_ONCE], binary[STATES_AT_ONCE];
    VALUE grad_rate[STATES_AT_ONCE];

    __device__ long long at(int row) const { return row * operands.num_channels + channel; }

    __device__ long long at_state(int row) const { return row * operands.num_states + first_state; }

    __device__ long long kept_at(int place, int number, int num_kept) const {
        return ((first_kept + place) * num_kept + number) * operands.num_channels + channel;
    }

    // `vector` is the number of a recurrence that runs up.
    __device__ States& kept_states(int place, int vector) const {
        return kept.states[kept_at(place, runs_up(0) ? vector : 0, NUM_KEPT)];
    }

    __device__ int num_states() const {
        const long long left = operands.num_states - first_state;
        return left < STATES_AT_ONCE ? static_cast<int>(left) : STATES_AT_ONCE;
    }

    __device__ Columns columns() const {
        return {channel * operands.num_states + first_state, 1, num_states()};
    }

    __device__ void start_segment(int first_place) {
        const bool every_node_has_a_row = at_once * kept.longest >= operands.num_nodes;
        first_kept = every_node_has_a_row ? 0 : slot * kept.longest - first_place;
    }

    __device__ void start_states(long long first) {
        first_state = first;
        set(grad_rate, 0);
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            const bool exists = state < num_states();
            rate[state] = exists ? operands.A[columns()[state]] : VALUE(0);
            binary[state] = binary_rate(rate[state]);
        }
    }

    __device__ Loaded load(int row) const {
        Loaded loaded;
        loaded.u = to_value(operands.u[at(row)]);
        loaded.delta = to_value(operands.delta[at(row)]);
        loaded.step = HAS_STEP ? to_value(operands.step[at(row)]) : loaded.delta;
        loaded.grad = IS_BACKWARD ? to_value(operands.grad[at(row)]) : VALUE(0);
        read_states(operands.B + at_state(row), num_states(), loaded.B);
        read_states(operands.C + at_state(row), num_states(), loaded.C);
        return loaded;
    }

    __device__ Node make(const Loaded& loaded) const {
        Node node;
        const VALUE scaled = loaded.delta * loaded.u;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            node.transition[state] = exponential(loaded.step * binary[state]);
            node.input.at[0][state] = scaled * loaded.B[state];
            if (IS_BACKWARD) node.input.at[LAST][state] = loaded.grad * loaded.C[state];
        }
        return node;
    }

    __device__ void keep(int row, int place, const Loaded& loaded, const Node& node,
                         const Sums& sum) const {
        Sums own = node.input;
        add(own, sum);
        if (IS_BACKWARD || DIRECTION != UP) {
            keep_states(place, own);
        } else {
            add_to_output(row, place, loaded, own);
        }
    }

    __device__ void keep_states(int place, const Sums& own) const {
        if (is_padding) return;
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (!runs_up(vector)) continue;
            States states;
            for (int i = 0; i < STATES_AT_ONCE; ++i) states.at[i] = own.at[vector][i];
            kept_states(place, vector) = states;
        }
    }

    __device__ LoadedAgain load_again(int row, int place) const {
        LoadedAgain loaded;
        static_cast<Loaded&>(loaded) = load(row);
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            if (!runs_up(vector)) continue;
            const States states = kept_states(place, vector);
            for (int i = 0; i < STATES_AT_ONCE; ++i) loaded.own.at[vector][i] = states.at[i];
        }
        return loaded;
    }

    __device__ void hand_down(int row, int place, LoadedAgain& loaded, bool is_root, Sums& heard) {
        Node node = make(loaded);
        if (is_root) set(node.transition, 0);
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            for (int state = 0; !runs_up(vector) && state < STATES_AT_ONCE; ++state) {
                loaded.own.at[vector][state] = node.input.at[vector][state];
            }
        }
        if (IS_BACKWARD) {
            hand_down_gradients(row, place, loaded, node.transition, is_root, heard);
        } else {
            hand_down_states(row, place, loaded, node.transition, heard);
        }
    }

    __device__ void hand_down_states(int row, int place, const LoadedAgain& loaded,
                                     const VALUE* transition, Sums& heard) const {
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            VALUE& h = heard.at[0][state];
            h = arrived(0, loaded.own.at[0][state], transition[state], h).sum;
        }
        add_to_output(row, place, loaded, heard);
    }

    __device__ void hand_down_gradients(int row, int place, const LoadedAgain& loaded,
                                        const VALUE* transition, bool is_root, Sums& heard) {
        VALUE grad_exponent[STATES_AT_ONCE];
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            const VALUE own = loaded.own.at[0][state], own_grad = loaded.own.at[LAST][state];
            VALUE &h = heard.at[0][state], &grad_h = heard.at[LAST][state];
            const Arrived x = arrived(0, own, transition[state], h);
            const Arrived grad = arrived(LAST, own_grad, transition[state], grad_h);
            h = x.sum;
            grad_h = grad.sum;
            VALUE grad_transition = 0;
            if (runs_up(LAST)) grad_transition += own_grad * x.from_outside;
            if (runs_up(0)) grad_transition += own * grad.from_outside;
            grad_exponent[state] = grad_transition * transition[state];
        }
        if (is_root) set(grad_exponent, 0);

        VALUE through_x = 0, grad_step = 0;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            through_x += heard.at[LAST][state] * loaded.B[state];
            grad_step += grad_exponent[state] * rate[state];
            grad_rate[state] += grad_exponent[state] * loaded.step;
        }
        add_to_gradients(row, place, loaded, through_x, grad_step);
        add_to_groups(row, loaded, heard);
    }

    // Adds what the states so far have added up to. True where these are the last, else the sums
    // are kept.
    __device__ bool are_complete(int place, VALUE (&sums)[NUM_SUMS]) const {
        const bool are_last = first_state + STATES_AT_ONCE >= operands.num_states;
        for (int i = 0; HAS_SUMS && i < NUM_SUMS; ++i) {
            VALUE& so_far = kept.sums[kept_at(place, i, NUM_SUMS)];
            if (first_state > 0) sums[i] += so_far;
            if (!are_last) so_far = sums[i];
        }
        return are_last;
    }

    __device__ void add_to_output(int row, int place, const Loaded& loaded, const Sums& h) const {
        VALUE y[NUM_SUMS] = {};
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            y[0] += loaded.C[state] * h.at[0][state];
        }
        if (!are_complete(place, y)) return;
        if (operands.D != nullptr) y[0] += operands.D[channel] * loaded.u;
        store(results.y + at(row), y[0]);
    }

    // `through_x` is the gradient of delta * u.
    __device__ void add_to_gradients(int row, int place, const Loaded& loaded, VALUE through_x,
                                     VALUE grad_step) const {
        VALUE sums[NUM_SUMS] = {};
        sums[0] = through_x;
        sums[NUM_SUMS - 1] = grad_step;
        if (is_padding || !are_complete(place, sums)) return;
        through_x = sums[0];
        grad_step = sums[NUM_SUMS - 1];
        VALUE grad_u = through_x * loaded.delta, grad_delta = through_x * loaded.u;
        if (operands.D != nullptr) grad_u += loaded.grad * operands.D[channel];
        if (!HAS_STEP) grad_delta += grad_step;
        store(results.grad_u + at(row), grad_u);
        store(results.grad_delta + at(row), grad_delta);
        store(results.grad_step + at(row), grad_step);
    }

    // Of the states' gradients of B, then of C.
    __device__ void add_to_groups(int row, const Loaded& loaded, const Sums& heard) const {
        using Group = GroupSum<2 * STATES_AT_ONCE>;
        VALUE grads[2 * STATES_AT_ONCE];
        const VALUE scaled = loaded.delta * loaded.u;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            grads[state] = heard.at[LAST][state] * scaled;
            grads[STATES_AT_ONCE + state] = heard.at[0][state] * loaded.grad;
        }
        if (is_padding) set(grads, 0);
        Group::add_up(grads);
        if (threadIdx.x % Group::alike != 0) return;
        const long long group = channel / GROUP_SIZE * operands.num_nodes * operands.num_states;
        for (int i = 0; i < Group::left_values; ++i) {
            const int number = Group::first_left_value() + i, state = number % STATES_AT_ONCE;
            VALUE* const to = number < STATES_AT_ONCE ? results.grad_B : results.grad_C;
            if (state < num_states()) to[group + at_state(row) + state] = grads[i];
        }
    }

    __device__ void add_to_rates() const {
        if (is_padding) return;
        const long long part = slot * operands.num_channels * operands.num_states;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            if (state >= num_states()) continue;
            results.grad_A[part + columns()[state]] += grad_rate[state];
        }
    }
};

extern "C" __global__ void reduce_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* u, const INPUT* delta, const INPUT* step,
                                        const INPUT* B, const INPUT* C, const INPUT* grad,
                                        const VALUE* A, const VALUE* D, long long num_channels,
                                        long long num_states, VALUE* memory_above,
                                        long long num_rows_above) {
    const Share share = share_of_thread<1, 1>(plan, num_nodes, at_once, num_channels);
    const Operands operands = {u, delta,     step,         B,         C, grad, A,
                               D, num_nodes, num_channels, num_states};
    InputNodes nodes = {operands, {}, {}, at_once, share.first_segment, share.columns.first};
    const Reduced above = reduced_arrays(memory_above, num_rows_above, num_channels * num_states);
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += at_once) {
        const int row = share.tier.linked_as[segment];
        if (row < 0) continue;
        for (long long state = 0; state < num_states; state += STATES_AT_ONCE) {
            nodes.start_states(state);
            write_reduced(above, row, nodes.columns(), reduce_segment(nodes, share.tier, segment));
        }
    }
}

extern "C" __global__ void finish_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* u, const INPUT* delta, const INPUT* step,
                                        const INPUT* B, const INPUT* C, const INPUT* grad,
                                        const VALUE* A, const VALUE* D, long long num_channels,
                                        long long num_states, VALUE* memory_above,
                                        long long num_rows_above, States* kept, VALUE* kept_sums,
                                        long long longest, INPUT* y, INPUT* grad_u,
                                        INPUT* grad_delta, INPUT* grad_step, VALUE* grad_A,
                                        VALUE* grad_B, VALUE* grad_C) {
    const long long num_threads_across = (num_channels + GROUP_SIZE - 1) / GROUP_SIZE * GROUP_SIZE;
    const Share share = share_of_thread<1, 1>(plan, num_nodes, at_once, num_threads_across);
    const bool is_padding = HAS_PADDING && share.columns.first >= num_channels;
    const long long channel = is_padding ? num_channels - 1 : share.columns.first;
    const Operands operands = {u, delta,     step,         B,         C, grad, A,
                               D, num_nodes, num_channels, num_states};
    const Results results = {y, grad_u, grad_delta, grad_step, grad_A, grad_B, grad_C};
    InputNodes nodes = {operands,
                        results,
                        {kept, kept_sums, static_cast<int>(longest)},
                        at_once,
                        share.first_segment,
                        channel,
                        is_padding};
    const Reduced above = reduced_arrays(memory_above, num_rows_above, num_channels * num_states);
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += at_once) {
        const int row = share.tier.linked_as[segment];
        nodes.start_segment(share.tier.start[segment]);
        for (long long state = 0; state < num_states; state += STATES_AT_ONCE) {
            nodes.start_states(state);
            finish_segment(nodes, share.tier, segment, above, row, nodes.columns());
            if (IS_BACKWARD) nodes.add_to_rates();
        }
    }
}
