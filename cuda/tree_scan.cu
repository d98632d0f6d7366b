// The tree scan and its gradients, over the segments of a forest.
//
//   up     xi_i = x_i + sum of a_c xi_c over the children c
//   down   h_i = x_i + a_i h_p
//   both   h_i = xi_i + a_i (h_p - a_i xi_i)
//
// Compiled for one VALUE (float or double), one INPUT (VALUE, or a half type where it is float),
// one DIRECTION, and forward or IS_BACKWARD.
#include "segments.cuh"

struct Operands {
    const INPUT* x;
    const INPUT* transition;
    const INPUT* grad;       // backward only
    VALUE* h;                // forward only
    VALUE* grad_x;           // backward only
    VALUE* grad_transition;  // backward only
    long long num_channels;
};

struct InputNodes {
    static const int AHEAD = 8;

    struct Loaded {
        VALUE x, transition, grad;
    };

    // With the sums of the pass up in the place of the inputs that need them.
    struct LoadedAgain {
        VALUE x, transition, grad;
        bool is_root;
    };

    Operands operands;
    long long channel;

    __device__ long long place(int row) const { return row * operands.num_channels + channel; }

    __device__ VALUE transition_of(long long place, int is_root) const {
        return is_root ? VALUE(0) : to_value(operands.transition[place]);
    }

    __device__ Loaded load(int row, int is_root) const {
        const long long at = place(row);
        return {to_value(operands.x[at]), transition_of(at, is_root),
                IS_BACKWARD ? to_value(operands.grad[at]) : VALUE(0)};
    }

    __device__ Node<1> make(const Loaded& loaded) const {
        Node<1> node;
        const VALUE transition = loaded.transition;
        node.transition[0] = transition;
        for (int vector = 0; vector < NUM_VECTORS; ++vector) {
            const VALUE input = vector == 0 ? loaded.x : loaded.grad;
            const VALUE up = transition * input;
            node.up.at[vector][0] = up;
            node.down.at[vector][0] = down_of_input(vector, input, transition, up);
        }
        return node;
    }

    __device__ void keep(int row, const Loaded& loaded, const Values<1>& sum) const {
        const long long at = place(row);
        const VALUE xi = loaded.x + sum.at[0][0];
        if (!IS_BACKWARD) {
            operands.h[at] = xi;
            return;
        }
        if (runs_up(0)) operands.grad_transition[at] = xi;
        if (runs_up(NUM_VECTORS - 1)) {
            operands.grad_x[at] = loaded.grad + sum.at[NUM_VECTORS - 1][0];
        }
    }

    __device__ LoadedAgain load_again(int row, int is_root) const {
        const long long at = place(row);
        LoadedAgain loaded = {0, transition_of(at, is_root), 0, is_root != 0};
        if (!IS_BACKWARD) {
            loaded.x = runs_up(0) ? operands.h[at] : to_value(operands.x[at]);
            return loaded;
        }
        loaded.x = runs_up(0) ? operands.grad_transition[at] : to_value(operands.x[at]);
        loaded.grad = runs_up(NUM_VECTORS - 1) ? operands.grad_x[at] : to_value(operands.grad[at]);
        return loaded;
    }

    __device__ Values<1> hand_down(int row, const LoadedAgain& loaded,
                                   const Values<1>& heard) const {
        const long long at = place(row);
        const int last = NUM_VECTORS - 1;
        const Arrived x = arrived(0, loaded.x, loaded.transition, heard.at[0][0]);
        Values<1> result;
        result.at[0][0] = x.sum;
        if (!IS_BACKWARD) {
            operands.h[at] = x.sum;
            return result;
        }
        const Arrived grad = arrived(last, loaded.grad, loaded.transition, heard.at[last][0]);
        result.at[last][0] = grad.sum;
        VALUE grad_transition = 0;
        if (runs_up(last)) grad_transition += loaded.grad * x.from_outside;
        if (runs_up(0)) grad_transition += loaded.x * grad.from_outside;
        operands.grad_x[at] = grad.sum;
        operands.grad_transition[at] = loaded.is_root ? VALUE(0) : grad_transition;
        return result;
    }
};

extern "C" __global__ void reduce_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* x, const INPUT* transition, const INPUT* grad,
                                        long long num_channels, VALUE* memory_above,
                                        long long num_rows_above) {
    const Share share = share_of_thread(plan, num_nodes, at_once, num_channels);
    const Operands operands = {x, transition, grad, nullptr, nullptr, nullptr, num_channels};
    InputNodes nodes = {operands, share.column};
    reduce(nodes, share, reduced_arrays(memory_above, num_rows_above, num_channels));
}

extern "C" __global__ void finish_input(const int* plan, long long num_nodes, long long at_once,
                                        const INPUT* x, const INPUT* transition, const INPUT* grad,
                                        long long num_channels, VALUE* memory_above,
                                        long long num_rows_above, VALUE* h, VALUE* grad_x,
                                        VALUE* grad_transition) {
    const Share share = share_of_thread(plan, num_nodes, at_once, num_channels);
    const Operands operands = {x, transition, grad, h, grad_x, grad_transition, num_channels};
    InputNodes nodes = {operands, share.column};
    finish(nodes, share, reduced_arrays(memory_above, num_rows_above, num_channels));
}
