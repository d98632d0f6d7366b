// The selective tree scan and its gradients, over the segments of a forest. Inputs and transitions
// are made on the way,
//
//   x_i = delta_i u_i B_i,   a_i = exp(step_i A),   y_i = C_i h_i + D u_i,
//
// where step is transition_delta, or delta where that is not given. The states of all nodes are
// never in memory together: a thread carries STATES_AT_ONCE of a channel's.
//
// Compiled for one VALUE (float or double), one INPUT (VALUE, or a half type where it is float),
// one DIRECTION, forward or IS_BACKWARD, STATES_AT_ONCE, HAS_CHUNKS, and GROUP_SIZE, the number of
// neighbouring channels whose gradients of B and C are added up on the spot.
#include "segments.cuh"

struct Operands {
    const INPUT* u;
    const INPUT* delta;
    const INPUT* step;
    const INPUT* B;
    const INPUT* C;
    const INPUT* grad;  // backward only
    const VALUE* A;
    const VALUE* D;  // may be null
    long long num_nodes, num_channels, num_states;
    bool has_own_step;
};

struct Results {
    VALUE* y;      // forward only
    VALUE* xi;     // one state of every node and channel
    VALUE* gamma;  // the same, backward only; so are the following
    VALUE* grad_u;
    VALUE* grad_delta;
    VALUE* grad_step;
    VALUE* grad_A;  // [at_once, num_channels, num_states]
    VALUE* grad_B;  // [groups of channels, num_nodes, num_states]
    VALUE* grad_C;
};

__device__ inline float exponential(float exponent) { return exp2f(exponent); }
__device__ inline double exponential(double exponent) { return exp2(exponent); }

// exp(t) = 2^(t log2 e): the factor goes into A once instead of into every exponent.
__device__ inline VALUE binary_rate(VALUE rate) { return rate * VALUE(1.4426950408889634074); }

// The sum over a group of neighbouring threads, valid in the first of them.
__device__ inline VALUE sum_of_group(VALUE value) {
    const unsigned int all = GROUP_SIZE == 32 ? 0xffffffffu : (1u << GROUP_SIZE % 32) - 1;
    const unsigned int mask = all << (threadIdx.x % 32 / GROUP_SIZE * GROUP_SIZE);
    for (int distance = GROUP_SIZE / 2; distance > 0; distance /= 2) {
        value += __shfl_down_sync(mask, value, distance, GROUP_SIZE);
    }
    return value;
}

// Sixteen bytes of a row of B or C, for one access.
struct alignas(16) Chunk {
    static const int SIZE = 16 / sizeof(INPUT);
    INPUT at[SIZE];
};

// The states at once; those beyond `num_states` are 0. HAS_CHUNKS says that rows are made of
// whole and aligned chunks.
__device__ inline void read_states(const INPUT* from, int num_states, VALUE* states) {
#pragma unroll
    for (int state = 0; state < STATES_AT_ONCE; ++state) {
        if (HAS_CHUNKS) {
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
    // Fewer where every node brings the registers of many states.
    static const int AHEAD = STATES_AT_ONCE > 1 ? 2 : 4;

    struct Loaded {
        VALUE u, delta, step, grad;
        VALUE B[STATES_AT_ONCE], C[STATES_AT_ONCE];
    };

    struct LoadedAgain : Loaded {
        VALUE xi, gamma;
    };

    Operands operands;
    Results results;
    long long channel;
    long long first_state;
    bool is_padding;  // beyond the last channel, only there to complete a group
    VALUE rate[STATES_AT_ONCE], binary[STATES_AT_ONCE];
    VALUE grad_rate;

    __device__ long long place(int row) const { return row * operands.num_channels + channel; }

    __device__ long long state_place(int row) const {
        return row * operands.num_states + first_state;
    }

    __device__ int num_states() const {
        const long long left = operands.num_states - first_state;
        return left < STATES_AT_ONCE ? static_cast<int>(left) : STATES_AT_ONCE;
    }

    __device__ void start(long long state) {
        first_state = state;
        grad_rate = 0;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            const bool exists = state < num_states();
            rate[state] =
                exists ? operands.A[channel * operands.num_states + first_state + state] : VALUE(0);
            binary[state] = binary_rate(rate[state]);
        }
    }

    __device__ Columns columns() const {
        return {channel * operands.num_states + first_state, 1, num_states()};
    }

    __device__ Loaded load(int row) const {
        const long long at = place(row), at_state = state_place(row);
        Loaded loaded;
        loaded.u = to_value(operands.u[at]);
        loaded.delta = to_value(operands.delta[at]);
        loaded.step = operands.has_own_step ? to_value(operands.step[at]) : loaded.delta;
        loaded.grad = IS_BACKWARD ? to_value(operands.grad[at]) : VALUE(0);
        read_states(operands.B + at_state, num_states(), loaded.B);
        read_states(operands.C + at_state, num_states(), loaded.C);
        return loaded;
    }

    __device__ VALUE transition_of(const Loaded& loaded, int state) const {
        return exponential(loaded.step * binary[state]);
    }

    __device__ VALUE input_of(const Loaded& loaded, int vector, int state) const {
        return vector == 0 ? loaded.delta * loaded.u * loaded.B[state]
                           : loaded.grad * loaded.C[state];
    }

    __device__ Node make(const Loaded& loaded) const {
        Node node;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            node.transition[state] = transition_of(loaded, state);
            for (int vector = 0; vector < NUM_VECTORS; ++vector) {
                node.input.at[vector][state] = input_of(loaded, vector, state);
            }
        }
        return node;
    }

    __device__ void keep(int row, const Loaded& loaded, const Node& node,
                         const Values<STATES_AT_ONCE>& sum) const {
        Values<STATES_AT_ONCE> own = node.input;
        add(own, sum);
        if (IS_BACKWARD || DIRECTION != UP) {
            keep_states(row, own);
            return;
        }
        VALUE y = 0;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            y += loaded.C[state] * own.at[0][state];
        }
        add_to_output(row, loaded, y);
    }

    __device__ void keep_states(int row, const Values<STATES_AT_ONCE>& own) const {
        if (is_padding) return;
        const long long at = place(row);
        const int last = NUM_VECTORS - 1;
        if (runs_up(0)) results.xi[at] = own.at[0][0];
        if (IS_BACKWARD && runs_up(last)) results.gamma[at] = own.at[last][0];
    }

    __device__ void add_to_output(int row, const Loaded& loaded, VALUE y) const {
        const long long at = place(row);
        if (first_state > 0) {
            y += results.y[at];
        } else if (operands.D != nullptr) {
            y += operands.D[channel] * loaded.u;
        }
        results.y[at] = y;
    }

    __device__ LoadedAgain load_again(int row) const {
        LoadedAgain loaded;
        static_cast<Loaded&>(loaded) = load(row);
        const bool has_gamma = IS_BACKWARD && runs_up(NUM_VECTORS - 1);
        loaded.xi = runs_up(0) ? results.xi[place(row)] : VALUE(0);
        loaded.gamma = has_gamma ? results.gamma[place(row)] : VALUE(0);
        return loaded;
    }

    __device__ void hand_down(int row, const LoadedAgain& loaded, bool is_root,
                              Values<STATES_AT_ONCE>& heard) {
        Node node = make(loaded);
        if (is_root) set(node.transition, 0);
        if (IS_BACKWARD) {
            hand_down_gradients(row, loaded, is_root, node.transition[0], heard);
            return;
        }
        VALUE y = 0;
        for (int state = 0; state < STATES_AT_ONCE; ++state) {
            const VALUE own = runs_up(0) ? loaded.xi : node.input.at[0][state];
            VALUE& h = heard.at[0][state];
            h = arrived(0, own, node.transition[state], h).sum;
            y += loaded.C[state] * h;
        }
        add_to_output(row, loaded, y);
    }

    __device__ void hand_down_gradients(int row, const LoadedAgain& loaded, bool is_root,
                                        VALUE transition, Values<STATES_AT_ONCE>& heard) {
        const int last = NUM_VECTORS - 1;
        const VALUE own = runs_up(0) ? loaded.xi : input_of(loaded, 0, 0);
        const VALUE own_grad = runs_up(last) ? loaded.gamma : input_of(loaded, last, 0);
        const Arrived x = arrived(0, own, transition, heard.at[0][0]);
        const Arrived grad = arrived(last, own_grad, transition, heard.at[last][0]);
        heard.at[0][0] = x.sum;
        heard.at[last][0] = grad.sum;

        VALUE grad_transition = 0;
        if (runs_up(last)) grad_transition += own_grad * x.from_outside;
        if (runs_up(0)) grad_transition += own * grad.from_outside;
        const VALUE grad_exponent = is_root || is_padding ? VALUE(0) : grad_transition * transition;
        grad_rate += grad_exponent * loaded.step;
        add_to_gradients(row, loaded, grad.sum * loaded.B[0], grad_exponent * rate[0]);
        add_to_groups(row, grad.sum * loaded.delta * loaded.u, x.sum * loaded.grad);
    }

    // `through_x` is the gradient of delta * u. Its sum over the states stands in the place of the
    // gradient of u until the last state.
    __device__ void add_to_gradients(int row, const Loaded& loaded, VALUE through_x,
                                     VALUE grad_step) const {
        if (is_padding) return;
        const long long at = place(row);
        if (first_state > 0) {
            through_x += results.grad_u[at];
            grad_step += results.grad_step[at];
        }
        results.grad_step[at] = grad_step;
        if (first_state + 1 < operands.num_states) {
            results.grad_u[at] = through_x;
            return;
        }
        const VALUE through_D =
            operands.D == nullptr ? VALUE(0) : loaded.grad * operands.D[channel];
        results.grad_u[at] = through_x * loaded.delta + through_D;
        results.grad_delta[at] =
            through_x * loaded.u + (operands.has_own_step ? VALUE(0) : grad_step);
    }

    __device__ void add_to_groups(int row, VALUE grad_B, VALUE grad_C) const {
        grad_B = sum_of_group(is_padding ? VALUE(0) : grad_B);
        grad_C = sum_of_group(is_padding ? VALUE(0) : grad_C);
        if (threadIdx.x % GROUP_SIZE != 0) return;
        const long long group = channel / GROUP_SIZE;
        const long long at = (group * operands.num_nodes + row) * operands.num_states + first_state;
        results.grad_B[at] = grad_B;
        results.grad_C[at] = grad_C;
    }
};

__device__ inline Operands read_operands(const INPUT* u, const INPUT* delta, const INPUT* step,
                                         const INPUT* B, const INPUT* C, const INPUT* grad,
                                         const VALUE* A, const VALUE* D, long long num_nodes,
                                         long long num_channels, long long num_states) {
    return {u, delta, step, B, C, grad, A, D, num_nodes, num_channels, num_states, step != nullptr};
}

extern "C" __global__ void reduce_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* u, const INPUT* delta, const INPUT* step,
                                        const INPUT* B, const INPUT* C, const INPUT* grad,
                                        const VALUE* A, const VALUE* D, long long num_channels,
                                        long long num_states, VALUE* memory_above,
                                        long long num_rows_above) {
    const Share share = share_of_thread<1, 1>(plan, num_nodes, at_once, num_channels);
    const Operands operands =
        read_operands(u, delta, step, B, C, grad, A, D, num_nodes, num_channels, num_states);
    InputNodes nodes = {operands, {}, share.columns.first};
    const Reduced above = reduced_arrays(memory_above, num_rows_above, num_channels * num_states);
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += at_once) {
        const int row = share.tier.linked_as[segment];
        if (row < 0) continue;
        for (long long state = 0; state < num_states; state += STATES_AT_ONCE) {
            nodes.start(state);
            write_reduced(above, row, nodes.columns(), reduce_segment(nodes, share.tier, segment));
        }
    }
}

extern "C" __global__ void finish_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* u, const INPUT* delta, const INPUT* step,
                                        const INPUT* B, const INPUT* C, const INPUT* grad,
                                        const VALUE* A, const VALUE* D, long long num_channels,
                                        long long num_states, VALUE* memory_above,
                                        long long num_rows_above, VALUE* y, VALUE* xi, VALUE* gamma,
                                        VALUE* grad_u, VALUE* grad_delta, VALUE* grad_step,
                                        VALUE* grad_A, VALUE* grad_B, VALUE* grad_C) {
    const long long num_columns = (num_channels + GROUP_SIZE - 1) / GROUP_SIZE * GROUP_SIZE;
    const Share share = share_of_thread<1, 1>(plan, num_nodes, at_once, num_columns);
    const bool is_padding = share.columns.first >= num_channels;
    const long long channel = is_padding ? num_channels - 1 : share.columns.first;
    const Operands operands =
        read_operands(u, delta, step, B, C, grad, A, D, num_nodes, num_channels, num_states);
    const Results results = {y, xi, gamma, grad_u, grad_delta, grad_step, grad_A, grad_B, grad_C};
    InputNodes nodes = {operands, results, channel, 0, is_padding};
    const Reduced above = reduced_arrays(memory_above, num_rows_above, num_channels * num_states);
    for (long long segment = share.first_segment; segment < share.tier.num_segments;
         segment += at_once) {
        const int row = share.tier.linked_as[segment];
        for (long long state = 0; state < num_states; state += STATES_AT_ONCE) {
            nodes.start(state);
            finish_segment(nodes, share.tier, segment, above, row, nodes.columns());
            if (IS_BACKWARD && !is_padding) {
                const long long part = share.first_segment * num_channels * num_states;
                grad_A[part + nodes.columns().first] += nodes.grad_rate;
            }
        }
    }
}
