import json

import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from groot_graph.ops.cuda import launch
from tests.equipment.cuda_host import HostSource, cuda_on_host
from tests.equipment.cuda_host.sanitize import run_sanitized

BLOCK = launch.THREADS_PER_BLOCK
SEEDS = range(5)


@pytest.fixture(autouse=True, scope="module")
def needs_compiler():
    with cuda_on_host():
        pass


def run(text, *arguments, grid=1, block=BLOCK, seed=0, preempt=False, macros=()):
    """Launches the one kernel of a text, called `kernel`."""
    words = [value.data_ptr() if torch.is_tensor(value) else value for value in arguments]
    HostSource(text, macros, seed, preempt).launch("kernel", grid, words, block)


def zeros(size, dtype=torch.int32):
    return torch.zeros(size, dtype=dtype)


# Barriers and shared memory.

REVERSE = """
template <typename T>
__device__ void reverse(const T* x, T* y) {
    __shared__ T values[256];
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = values[255 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(256) kernel(const int* x, int* y, long long offset) {
    reverse(x + blockIdx.x * 256 + offset, y + blockIdx.x * 256);
}
"""


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_reversal_through_shared_memory(seed, preempt):
    x = torch.arange(3 * BLOCK + 1, dtype=torch.int32)
    y = zeros(3 * BLOCK)
    run(REVERSE, x, y, 1, grid=3, seed=seed, preempt=preempt)
    assert torch.equal(y, x[1:].view(3, BLOCK).flip(1).flatten())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_shows(seed):
    x = torch.arange(BLOCK, dtype=torch.int32)
    y = zeros(BLOCK)
    run(REVERSE.replace("__syncthreads();", ""), x, y, 0, seed=seed)
    assert not torch.equal(y, x.flip(0))


def test_shared_memory_starts_with_garbage():
    text = """
    extern "C" __global__ void kernel(int* y) {
        __shared__ int value;
        y[blockIdx.x] = value;
        __syncthreads();
        value = 0;
    }"""
    y = zeros(10)
    run(text, y, grid=10)
    assert len(set(y.tolist())) == 10


SUM = """
extern "C" __global__ void kernel(const float* x, float* y) {
    __shared__ float sums[256];
    sums[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) y[blockIdx.x] = sums[0];
}
"""


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_block_reduction(seed, preempt):
    x = torch.randint(100, (7, BLOCK)).float()
    y = torch.zeros(7)
    run(SUM, x, y, grid=7, seed=seed, preempt=preempt)
    assert torch.equal(y, x.sum(1))


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("block", [32, 96, 1024])
def test_a_block_of_any_size(block, preempt):
    text = """
    extern "C" __global__ void kernel(int* y) {
        __shared__ int passed[1024];
        for (int round = 0; round < 3; ++round) {
            passed[threadIdx.x] = threadIdx.x + round;
            __syncthreads();
            y[blockIdx.x * blockDim.x + threadIdx.x] += passed[blockDim.x - 1 - threadIdx.x];
            if (!__syncthreads_or(round < 2 && threadIdx.x == blockDim.x - 1)) return;
        }
    }"""
    y = zeros(2 * block)
    run(text, y, grid=2, block=block, seed=block, preempt=preempt)
    expected = 3 * torch.arange(block, dtype=torch.int32).flip(0) + 3
    assert torch.equal(y.view(2, block), expected.expand(2, -1))


def test_barriers_that_count():
    text = """
    extern "C" __global__ void kernel(int* y) {
        const int i = threadIdx.x;
        const int results[] = {
            __syncthreads_count(i % 3 == 0), __syncthreads_or(i == 7), __syncthreads_or(i < 0),
            __syncthreads_and(i >= 0), __syncthreads_and(i != 7)};
        for (int k = 0; k < 5; ++k) atomicAdd(y + k, results[k]);
    }"""
    y = zeros(5)
    run(text, y)
    assert y.tolist() == [86 * BLOCK, BLOCK, 0, BLOCK, 0]


# Warps.

SHUFFLES = """
extern "C" __global__ void kernel(const double* x, double* y, long long num_threads) {
    const double value = x[threadIdx.x];
    double* row = y + threadIdx.x;
    const unsigned full = 0xffffffffu;
    row[0 * num_threads] = __shfl_sync(full, value, 5, WIDTH);
    row[1 * num_threads] = __shfl_sync(full, value, 37 - (int)threadIdx.x, WIDTH);
    row[2 * num_threads] = __shfl_up_sync(full, value, 3, WIDTH);
    row[3 * num_threads] = __shfl_down_sync(full, value, 3, WIDTH);
    row[4 * num_threads] = __shfl_xor_sync(full, value, 6, WIDTH);
    double sum = value;
    for (int lanes = WIDTH / 2; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(full, sum, lanes, WIDTH);
    }
    row[5 * num_threads] = sum;
    row[6 * num_threads] = __shfl_xor_sync(full, (float)value, 31, WIDTH);
}
"""


def expected_shuffles(x, width):
    i = torch.arange(BLOCK)
    start, lane = i // width * width, i % width
    up, down = torch.where(lane >= 3, i - 3, i), torch.where(lane + 3 < width, i + 3, i)
    # Only a segment before one's own can be read across.
    across = [torch.where((i ^ bits) < start + width, i ^ bits, i) for bits in (6, 31)]
    sums = x.view(-1, width).sum(1).repeat_interleave(width)
    sources = (start + 5 % width, start + (37 - i) % width, up, down, across[0])
    return torch.stack([*(x[source] for source in sources), sums, x[across[1]].float().double()])


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("width", [32, 8, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles(seed, width, preempt):
    x = torch.randint(10**12, (BLOCK,)).double()
    y = torch.zeros(7, BLOCK, dtype=torch.double)
    run(SHUFFLES, x, y, BLOCK, seed=seed, preempt=preempt, macros=(("WIDTH", width),))
    assert torch.equal(y, expected_shuffles(x, width))


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_groups_of_a_warp_shuffle_at_their_own_times(seed, preempt):
    text = """
    __device__ int sum_of_group(unsigned mask, int value) {
        for (int lanes = 4; lanes > 0; lanes /= 2) value += __shfl_xor_sync(mask, value, lanes, 8);
        return value;
    }
    extern "C" __global__ void kernel(const int* x, int* y) {
        const int i = threadIdx.x, group = i % 32 / 8;
        const unsigned mask = 0xffu << (8 * group);
        int sum = 0;
        if (group == 1) {
            sum = sum_of_group(mask, x[i]);
        } else {
            for (int k = 0; k <= group; ++k) {
                sum += sum_of_group(mask, x[i]);
                __syncwarp(mask);
            }
        }
        y[i] = sum;
    }"""
    x = torch.randint(1000, (BLOCK,), dtype=torch.int32)
    y = zeros(BLOCK)
    run(text, x, y, seed=seed, preempt=preempt)
    expected = x.view(-1, 4, 8).sum(2) * torch.tensor([1, 1, 3, 4])
    assert torch.equal(y, expected.repeat_interleave(8).int())


def test_what_a_thread_outside_the_mask_gives_is_garbage():
    text = """
    extern "C" __global__ void kernel(int* y) {
        if (threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_down_sync(0xffffu, 1, 1);
    }"""
    y = zeros(BLOCK)
    run(text, y)
    y = y.view(-1, 32)
    assert (y[:, :15] == 1).all() and (y[:, 15] != 1).all() and not y[:, 16:].any()


@pytest.mark.parametrize("preempt", [False, True])
def test_votes(preempt):
    text = """
    extern "C" __global__ void kernel(const int* x, unsigned* ballot, int* some, int* every) {
        const int i = threadIdx.x;
        ballot[i] = __ballot_sync(0xffffffffu, x[i]);
        if (i % 2) {
            some[i] = __any_sync(0xaaaaaaaau, x[i] == 3);
            every[i] = __all_sync(0xaaaaaaaau, x[i] < 3);
        }
    }"""
    x = torch.randint(4, (BLOCK,), dtype=torch.int32)
    ballot, some, every = zeros(BLOCK), zeros(BLOCK), zeros(BLOCK)
    x[32:64] = 0
    run(text, x, ballot, some, every, preempt=preempt)
    warps = x.view(-1, 32)
    bits = ((warps > 0).long() << torch.arange(32)).sum(1)
    assert torch.equal(ballot.long() % 2**32, bits.repeat_interleave(32))
    odd = warps[:, 1::2]
    for votes, expected in ((some, (odd == 3).any(1)), (every, (odd < 3).all(1))):
        votes = votes.view(-1, 32)
        assert not votes[:, ::2].any()
        assert torch.equal(votes[:, 1::2], expected[:, None].expand(-1, 16).int())


# Atomics.


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("type_name", ["int", "unsigned", "unsigned long long"])
def test_atomics(type_name, preempt):
    text = """
    extern "C" __global__ void kernel(TYPE* y, TYPE* taken) {
        const TYPE i = blockIdx.x * 256 + threadIdx.x;
        taken[atomicAdd(y, 1)] = 1;
        atomicMin(y + 1, i);
        atomicMax(y + 2, i);
        atomicOr(y + 3, (TYPE)1 << i % 31);
        // Every value goes in once, and comes out once or stays.
        atomicAdd(y + 5, atomicExch(y + 4, i));
        TYPE old = y[6], seen;
        while ((seen = atomicCAS(y + 6, old, old + i)) != old) old = seen;
    }"""
    num_threads = 4 * BLOCK
    dtype = torch.int64 if "long" in type_name else torch.int32
    y, taken = zeros(7, dtype), zeros(num_threads, dtype)
    y[1] = num_threads
    run(text, y, taken, grid=4, preempt=preempt, macros=(("TYPE", type_name),))
    total = num_threads * (num_threads - 1) // 2
    assert taken.all()
    assert y[:4].tolist() == [num_threads, 0, num_threads - 1, 2**31 - 1]
    assert y[4] + y[5] == y[6] == total


@pytest.mark.parametrize("seed", SEEDS)
def test_preemption_makes_a_lost_update_visible(seed):
    text = """
    extern "C" __global__ void kernel(int* y) {
        __shared__ int shared;
        if (threadIdx.x == 0) shared = 0;
        __syncthreads();
        shared = shared + 1;
        y[0] = y[0] + 1;
        const int seen = y[1];
        atomicAdd(y + 2, 1);
        y[1] = seen + 1;
        __syncthreads();
        if (threadIdx.x == 0) y[3] = shared;
    }"""
    whole, interrupted = zeros(4), zeros(4)
    run(text, whole, seed=seed)
    run(text, interrupted, seed=seed, preempt=True)
    assert whole.tolist() == [BLOCK] * 4
    assert (interrupted < BLOCK).tolist() == [True, True, False, True]


@pytest.mark.parametrize("preempt", [False, True])
def test_orders_are_drawn_from_the_seed(preempt):
    text = """
    extern "C" __global__ void kernel(int* count, int* order) {
        order[atomicAdd(count, 1)] = blockIdx.x * 256 + threadIdx.x;
    }"""
    orders = {}
    for seed in (0, 1, 0, 1):
        order = zeros(8 * BLOCK)
        run(text, zeros(1), order, grid=8, seed=seed, preempt=preempt)
        assert torch.equal(order.sort().values, torch.arange(8 * BLOCK, dtype=torch.int32))
        # Blocks run one after another.
        blocks = order.view(8, BLOCK) // BLOCK
        assert (blocks == blocks[:, :1]).all()
        assert torch.equal(orders.setdefault(seed, order), order)
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0][::BLOCK] // BLOCK, orders[1][::BLOCK] // BLOCK)


def test_a_race_gives_other_results_with_other_seeds():
    text = 'extern "C" __global__ void kernel(int* y) { y[0] = threadIdx.x; }'
    results = set()
    for seed in range(10):
        y = zeros(1)
        run(text, y, seed=seed)
        results.add(y.item())
    assert len(results) > 5


# Misuse.

MISUSES = {
    "a barrier that some leave out": (
        "if (threadIdx.x < 100) __syncthreads();",
        "at __syncthreads in line 1",
        "barrier",
    ),
    "two barriers": (
        "if (threadIdx.x < 100)\n__syncthreads();\nelse\n__syncthreads();",
        "at __syncthreads in line",
        "another barrier",
    ),
    "a shuffle that some leave out": (
        "if (threadIdx.x % 32 < 31) __shfl_sync(0xffffffffu, 1, 0);",
        "at __shfl_sync in line 1 with mask 0xffffffff",
        "finish",
    ),
    "a shuffle that some come to after a barrier": (
        "if (threadIdx.x % 2) __syncthreads();\n__shfl_sync(0xffffffffu, 1, 0);",
        "at __shfl_sync in line 2",
        "wait",
    ),
    "two masks": (
        "__shfl_sync(threadIdx.x % 32 < 16 ? 0xffffffffu : 0xffff0000u, 1, 0);",
        "with mask 0xffff0000",
        "another mask",
    ),
    "two functions": (
        "if (threadIdx.x % 2) __syncwarp(); else __ballot_sync(0xffffffffu, 1);",
        "at __syncwarp",
        "another mask or function",
    ),
    "a mask without the thread itself": ("__syncwarp(1);", "0x00000001", "not in its own mask"),
    "a width that is no power of two": (
        "__shfl_sync(0xffffffffu, 1, 0, 12);",
        "running",
        "width",
    ),
}


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_misuse_is_reported(seed, misuse, preempt):
    statements, state, what = MISUSES[misuse]
    # The second kernel is as it should be: a failed launch leaves nothing behind.
    text = f'extern "C" __global__ void kernel() {{ {statements} }}\n{REVERSE}'
    source = HostSource(text.replace("256) kernel", "256) reverse_all"), (), seed, preempt)
    for _ in range(3):
        with pytest.raises(RuntimeError, match=what) as error:
            source.launch("kernel", 3, [])
        assert "kernel kernel, block " in str(error.value) and state in str(error.value)
        x, y = torch.arange(BLOCK, dtype=torch.int32), zeros(BLOCK)
        source.launch("reverse_all", 1, [x.data_ptr(), y.data_ptr(), 0])
        assert torch.equal(y, x.flip(0))


def test_errors_of_the_compiler_name_the_line_of_the_source():
    with pytest.raises(RuntimeError, match=r"kernel\.cu:2:.*missing"):
        HostSource('extern "C" __global__ void kernel(int* y) {\n*y = missing; }')


# What the compiler alone knows by name.


def test_mathematics_and_bits():
    text = """
    extern "C" __global__ void kernel(const float* x, float* y, const long long* n, long long* m) {
        const float a = __ldg(x), b = x[1];
        const float floats[] = {
            expf(a), exp(a), exp2f(a), exp2(a), fmaf(a, b, 2.0f), min(a, b), max(a, b),
            __uint_as_float(__float_as_uint(a)), __int_as_float(__float_as_int(a)),
            (float)__longlong_as_double(__double_as_longlong(b))};
        for (int i = 0; i < 10; ++i) y[i] = floats[i];
        const long long integers[] = {
            __popc(n[0]), __ffs(n[0]), __clz(n[0]), __clzll(n[0]), __clz(0), __ffs(0),
            min(n[0], 3), max(3, 4u), min(-1, 1)};
        for (int i = 0; i < 9; ++i) m[i] = integers[i];
    }"""
    x, y = torch.tensor([0.7, -1.3]), torch.zeros(10)
    n, m = torch.tensor([0b101000]), zeros(9, torch.int64)
    run(text, x, y, n, m)
    a, b = x
    expected = [a.exp(), a.exp(), a.exp2(), a.exp2(), a * b + 2, b, a, a, a, b]
    torch.testing.assert_close(y, torch.stack(expected))
    assert m.tolist() == [2, 4, 26, 58, 32, 0, 3, 4, -1]


# The project's own launch and what its operations share.

JOIN = """
{common}
extern "C" __global__ void start(int* link, long long num_nodes) {{
    for (long long i = thread_index(); i < num_nodes; i += num_threads()) link[i] = i;
}}
extern "C" __global__ void join(
    const long long* source, const long long* target, int* link, int* num_joined, long long size) {{
    for (long long i = thread_index(); i < size; i += num_threads()) {{
        if (join_trees(link, source[i], target[i])) atomicAdd(num_joined, 1);
    }}
}}
extern "C" __global__ void label(int* link, int* label, long long num_nodes) {{
    for (long long i = thread_index(); i < num_nodes; i += num_threads()) {{
        label[i] = find_root(link, i);
    }}
}}
"""


def labels_on_host(edge_index, num_nodes):
    link, label = zeros(num_nodes), zeros(num_nodes)
    num_joined = zeros(1)
    num_edges = edge_index.size(1)
    kernel = launch.bind("join")
    kernel("start", num_nodes, link, num_nodes)
    kernel("join", 600, *edge_index, link, num_joined, num_edges)
    kernel("label", num_nodes, link, label, num_nodes)
    return label.long(), num_joined.item()


@pytest.fixture
def join_source(monkeypatch):
    source = launch.source
    text = JOIN.format(common='#include "common.cuh"')

    def with_join(operation):
        if operation != "join":
            return source(operation)
        included = (launch.source_folder() / "common.cuh").read_text()
        return text.replace('#include "common.cuh"', included)

    monkeypatch.setattr(launch, "source", with_join)


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("num_nodes", "num_edges"), [(1, 3), (20, 300), (700, 500), (700, 2000)])
def test_union_find(join_source, num_nodes, num_edges, seed, preempt):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    with cuda_on_host(seed, preempt):
        label, num_joined = labels_on_host(edge_index, num_nodes)
    graph = coo_matrix(([1] * num_edges, edge_index.numpy()), (num_nodes, num_nodes))
    num_components, component = connected_components(graph, directed=False)
    component = torch.from_numpy(component).long()
    lowest = torch.full((num_components,), num_nodes)
    lowest.scatter_reduce_(0, component, torch.arange(num_nodes), "amin")
    assert torch.equal(label, lowest[component])
    assert num_joined == num_nodes - num_components


def test_the_kernels_are_loaded_as_before_afterwards():
    load = launch.load
    with cuda_on_host():
        assert launch.load is not load
    assert launch.load is load


# Sanitizers.

SANITIZED = """
import json
import os
import sys
import pytest
import torch
from tests.equipment.cuda_host import HostSource

def check(text):
    y = torch.arange(256, dtype=torch.int32)
    for preempt in (False, True):
        source = HostSource(text, preempt=preempt)
        with pytest.raises(RuntimeError, match="barrier"):
            source.launch("misuse", 2, [])
        source.launch("kernel", 2, [y.data_ptr(), len(y)])

def report_of(text):
    # Sanitizers end the process. Each has its own, and imports nothing again.
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.dup2(writer, 2)
        check(text)
        os._exit(0)
    os.close(writer)
    report = open(reader).read()
    assert os.waitpid(process, 0)[1] != 0, text
    return report

correct, *incorrect = json.loads(sys.argv[1])
check(correct)
print(json.dumps([report_of(text) for text in incorrect]))
"""

STATEMENTS = """
extern "C" __global__ void misuse() {{ if (threadIdx.x == 9) __syncthreads(); }}
extern "C" __global__ void kernel(int* y, long long size) {{
    __shared__ int values[256];
    const int i = threadIdx.x;
    values[i] = y[i];
    __syncthreads();
    int value = __shfl_xor_sync(0xffffffffu, values[255 - i], 5);
    atomicAdd(y + i, value);
    __syncthreads();
    {statements}
}}
"""
CORRECT = STATEMENTS.format(statements="")

INCORRECT = {
    "y[size - 255 + i] = 1;": "heap-buffer-overflow",
    "atomicAdd(y + size - 255 + i, 1);": "heap-buffer-overflow",
    "if (size) { int own[4]; int* all = own; all[size] = i; y[i] = *all; }": "insufficient space",
    "y[i] = values[i + 1];": "out of bounds",
    "y[i] = i + 0x7fffffff;": "signed integer overflow",
    "y[i] = 1 << (i | 32);": "shift exponent",
    "y[i] = reinterpret_cast<int2*>(y + 1)[0].x;": "misaligned address",
}


@pytest.mark.full
def test_sanitizers_stop_incorrect_kernels_only():
    incorrect = [STATEMENTS.format(statements=statements) for statements in INCORRECT]
    reports = json.loads(run_sanitized(SANITIZED, json.dumps([CORRECT, *incorrect])))
    for report, expected in zip(reports, INCORRECT.values(), strict=True):
        assert expected in report


@pytest.mark.full
def test_a_sanitizers_report_is_a_failure():
    statements, expected = next(iter(INCORRECT.items()))
    text = STATEMENTS.format(statements=statements)
    with pytest.raises(pytest.fail.Exception, match=expected):
        run_sanitized(SANITIZED, json.dumps([text]))
