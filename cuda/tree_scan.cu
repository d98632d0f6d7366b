// The tree scan and its gradients, over the segments of a forest.
//
//   up     xi_i = x_i + sum of a_c xi_c over the children c
//   down   h_i = x_i + a_i h_p
//   both   h_i = xi_i + a_i (h_p - a_i xi_i)
//
// Compiled for one VALUE (float or double), one INPUT (VALUE, or a half type where it is float),
// one DIRECTION, forward or IS_BACKWARD, and for the channels that a thread has of a segment:
// PER_LANE of them, LANES apart. HAS_REST says that some threads have fewer.
#include "segments.cuh"

struct Operands {
    const INPUT* x;
    const INPUT* transition;
    const INPUT* grad;  // backward only
};

// What holds the sums of the pass up until the pass down, where there are both.
struct Results {
    INPUT* h;                // forward only
    INPUT* grad_x;           // backward only
    INPUT* grad_transition;  // backward only
};

struct InputNodes {
    static const int NUM_COLUMNS = PER_LANE;
    // Fewer where every node brings many registers.
    static const int BYTES = PER_LANE * NUM_VECTORS * sizeof(VALUE);
    static const int AHEAD = BYTES > 40 ? 2 : BYTES > 8 ? 4 : 8;
    using Node = InputNode<PER_LANE>;

    struct Loaded {
        VALUE x[PER_LANE], transition[PER_LANE], grad[PER_LANE];
    };

    // With the sums of the pass up in the place of the inputs that need them.
    using LoadedAgain = Loaded;

    Operands operands;
    Results results;
    long long num_channels, channel;
    int num_columns;

    __device__ long long place(int row) const { return row * num_channels + channel; }

    __device__ bool has(int column) const { return !HAS_REST || column < num_columns; }

    __device__ void read(const INPUT* from, long long at, VALUE (&values)[PER_LANE]) const {
        for (int column = 0; column < PER_LANE; ++column) {
            values[column] = has(column) ? to_value(from[at + column * LANES]) : VALUE(0);
        }
    }

    __device__ void write(INPUT* to, long long at, const VALUE (&values)[PER_LANE]) const {
        for (int column = 0; column < PER_LANE; ++column) {
            if (has(column)) store(to + at + column * LANES, values[column]);
        }
    }

    __device__ Loaded load(int row) const {
        const long long at = place(row);
        Loaded loaded;
        read(operands.x, at, loaded.x);
        read(operands.transition, at, loaded.transition);
        if (IS_BACKWARD) read(operands.grad, at, loaded.grad);
        return loaded;
    }

    __device__ Node make(const Loaded& loaded) const {
        Node node;
        for (int column = 0; column < PER_LANE; ++column) {
            node.transition[column] = loaded.transition[column];
            node.input.at[0][column] = loaded.x[column];
            if (IS_BACKWARD) node.input.at[NUM_VECTORS - 1][column] = loaded.grad[column];
        }
        return node;
    }

    __device__ void keep(int row, int, const Loaded&, const Node& node,
                         const Values<PER_LANE>& sum) const {
        Values<PER_LANE> own = node.input;
        add(own, sum);
        const long long at = place(row);
        if (!IS_BACKWARD) {
            write(results.h, at, own.at[0]);
            return;
        }
        if (runs_up(0)) write(results.grad_transition, at, own.at[0]);
        if (runs_up(NUM_VECTORS - 1)) write(results.grad_x, at, own.at[NUM_VECTORS - 1]);
    }

    __device__ LoadedAgain load_again(int row, int) const {
        const long long at = place(row);
        const INPUT* x = IS_BACKWARD ? results.grad_transition : results.h;
        LoadedAgain loaded;
        read(operands.transition, at, loaded.transition);
        read(runs_up(0) ? x : operands.x, at, loaded.x);
        if (IS_BACKWARD) {
            read(runs_up(NUM_VECTORS - 1) ? results.grad_x : operands.grad, at, loaded.grad);
        }
        return loaded;
    }

    __device__ void hand_down(int row, int, LoadedAgain& loaded, bool is_root,
                              Values<PER_LANE>& heard) const {
        const long long at = place(row);
        const int last = NUM_VECTORS - 1;
        if (is_root) set(loaded.transition, 0);
        VALUE grad_transition[PER_LANE];
        for (int column = 0; column < PER_LANE; ++column) {
            const VALUE transition = loaded.transition[column], own = loaded.x[column];
            const Arrived x = arrived(0, own, transition, heard.at[0][column]);
            heard.at[0][column] = x.sum;
            if (!IS_BACKWARD) continue;
            const VALUE own_grad = loaded.grad[column];
            const Arrived grad = arrived(last, own_grad, transition, heard.at[last][column]);
            heard.at[last][column] = grad.sum;
            grad_transition[column] = 0;
            if (runs_up(last)) grad_transition[column] += own_grad * x.from_outside;
            if (runs_up(0)) grad_transition[column] += own * grad.from_outside;
        }
        if (!IS_BACKWARD) {
            write(results.h, at, heard.at[0]);
            return;
        }
        if (is_root) set(grad_transition, 0);
        write(results.grad_x, at, heard.at[last]);
        write(results.grad_transition, at, grad_transition);
    }
};

__device__ inline Share share_of_lane(const int* plan, long long num_nodes, long long at_once,
                                      long long num_channels) {
    return share_of_thread<LANES, PER_LANE>(plan, num_nodes, at_once, num_channels);
}

extern "C" __global__ void reduce_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* x, const INPUT* transition, const INPUT* grad,
                                        long long num_channels, VALUE* memory_above,
                                        long long num_rows_above) {
    const Share share = share_of_lane(plan, num_nodes, at_once, num_channels);
    InputNodes nodes = {
        {x, transition, grad}, {}, num_channels, share.columns.first, share.columns.number};
    reduce(nodes, share, reduced_arrays(memory_above, num_rows_above, num_channels));
}

extern "C" __global__ void finish_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* x, const INPUT* transition, const INPUT* grad,
                                        long long num_channels, VALUE* memory_above,
                                        long long num_rows_above, INPUT* h, INPUT* grad_x,
                                        INPUT* grad_transition) {
    const Share share = share_of_lane(plan, num_nodes, at_once, num_channels);
    InputNodes nodes = {{x, transition, grad},
                        {h, grad_x, grad_transition},
                        num_channels,
                        share.columns.first,
                        share.columns.number};
    finish(nodes, share, reduced_arrays(memory_above, num_rows_above, num_channels));
}
