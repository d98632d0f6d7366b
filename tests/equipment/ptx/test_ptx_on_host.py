import math

import pytest
import torch

from groot_graph.ops.cuda import launch
from tests.equipment.ptx import Launch, PtxSource, ptx_on_host
from tests.equipment.ptx.__main__ import COLUMNS, main
from tests.equipment.ptx.translate import translate

BLOCK = launch.THREADS_PER_BLOCK


@pytest.fixture(autouse=True, scope="module")
def needs_compilers():
    with ptx_on_host():
        pass


def run(parameters: str, body: str, *arguments, grid: int = 1, block: int = BLOCK) -> Launch:
    """Launches one kernel of given parameters and statements."""
    place = "const int i = blockIdx.x * blockDim.x + threadIdx.x;"
    text = f'extern "C" __global__ void kernel({parameters}) {{ {place} {body} }}'
    words = [value.data_ptr() if torch.is_tensor(value) else value for value in arguments]
    source = PtxSource(text)
    source.launch("kernel", grid, words, block)
    return source.launches[-1]


def zeros(size=BLOCK, dtype=torch.int32):
    return torch.zeros(size, dtype=dtype)


def test_every_thread_of_the_grid():
    y = zeros(3 * BLOCK)
    run("int* y", "y[i] = i * gridDim.x;", y, grid=3)
    assert torch.equal(y, 3 * torch.arange(3 * BLOCK, dtype=torch.int32))


def test_subnormal_floats_are_flushed_and_doubles_are_not():
    tiny = 2.0**-130
    for x, y, expected in [
        (tiny, 1.0, 0.0),
        (-tiny, 1.0, -0.0),
        (tiny, 2.0**20, 0.0),
        (2.0**-70, 2.0**-70, 0.0),
        (2.0**-63, 2.0**-63, 2.0**-126),
    ]:
        operands, product = torch.tensor([x, y]), torch.ones(1)
        run("float* x, float* y", "if (i == 0) *y = x[0] * x[1];", operands, product)
        assert product.item() == expected
        assert math.copysign(1, product.item()) == math.copysign(1, expected)
    operands = torch.tensor([2.0**-1000, 2.0**-60], dtype=torch.float64)
    product = torch.ones(1, dtype=torch.float64)
    run("double* x, double* y", "if (i == 0) *y = x[0] * x[1];", operands, product)
    assert product.item() == 2.0**-1060


@pytest.mark.parametrize("type, digits", [("float", 12), ("double", 27)])
def test_products_are_fused_with_sums_unless_rounded_by_themselves(type, digits):
    dtype = {"float": torch.float32, "double": torch.float64}[type]
    x = torch.tensor([1 + 2.0**-digits, -1 - 2.0 ** (1 - digits)], dtype=dtype)
    y = zeros(2, dtype)
    rounded = {"float": "__fadd_rn(__fmul_rn", "double": "__dadd_rn(__dmul_rn"}[type]
    body = f"if (i == 0) {{ y[0] = x[0] * x[0] + x[1]; y[1] = {rounded}(x[0], x[0]), x[1]); }}"
    run(f"const {type}* x, {type}* y", body, x, y)
    assert y.tolist() == [2.0 ** (-2 * digits), 0.0]


def test_comparisons_with_nan():
    x = torch.tensor([math.nan, 1.0])
    y = zeros(8)
    values = ("a < b", "a >= b", "a == b", "a != b", "!(a < b)", "!(a >= b)", "a != a", "b == b")
    body = "const float a = x[0], b = x[1];"
    body += "".join(f"y[{place}] = {value};" for place, value in enumerate(values))
    run("const float* x, int* y", body, x, y)
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_integers_are_extended_and_shifted_by_their_sign():
    x = torch.tensor([-5, 7], dtype=torch.int32)
    y = zeros(8, torch.int64)
    values = ("x[0]", "(unsigned)x[0]", "x[0] >> x[1]", "(unsigned)x[0] >> x[1]")
    values += ("(long long)x[0] * x[1]", "x[0] / 2", "x[0] % x[1]", "x[1] % 4")
    body = "".join(f"y[{place}] = {value};" for place, value in enumerate(values))
    run("const int* x, long long* y", body, x, y)
    assert y.tolist() == [-5, 2**32 - 5, -1, (2**32 - 5) >> 7, -35, -2, -5, 3]


def test_upper_halves_of_products_and_bits_put_into_others():
    x = torch.tensor([-(2**62), 2**35 + 1], dtype=torch.int64)
    y = zeros(3, torch.int64)
    body = """if (i == 0) {
        asm("mul.hi.s64 %0, %1, %2;" : "=l"(y[0]) : "l"(x[0]), "l"(x[1]));
        asm("mul.hi.u64 %0, %1, %2;" : "=l"(y[1]) : "l"(x[0]), "l"(x[1]));
        asm("bfi.b64 %0, %1, %2, 4, 8;" : "=l"(y[2]) : "l"(0xfabcLL), "l"(-1LL));
    }"""
    run("const long long* x, long long* y", body, x, y)
    high = [int(a) * int(x[1]) >> 64 for a in (x[0], int(x[0]) % 2**64)]
    assert y.tolist() == [*high, -1 - 0xFF0 + 0xBC0]


def test_bytes_are_put_into_any_places():
    y = zeros(1)
    body = """if (i == 0) asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y[0])
        : "r"(0x44332291), "r"(0x88776655), "r"(0x8540));"""
    run("int* y", body, y)
    # From the lowest place on: byte 0, byte 4, byte 5, and the sign of byte 0.
    assert int(y[0]) % 2**32 == 0xFF665591


def test_halves_are_converted_as_pytorch_does():
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    halves = bits.view(torch.float16)
    floats = torch.empty(2**16)
    convert = 'asm("cvt.f32.f16 %0, %1;" : "=f"(to[i]) : "h"(from[i]));'
    run("const short* from, float* to", convert, bits, floats, grid=2**16 // BLOCK)
    assert torch.equal(floats.nan_to_num(9e9), halves.float().nan_to_num(9e9))
    # Halfway between two, and beside that, on both sides.
    scale = torch.tensor([1 - 2.0**-12, 1 - 2.0**-11, 1, 1 + 2.0**-11, 1 + 3 * 2.0**-12])
    numbers = (floats[:, None] * scale).flatten().contiguous()
    numbers = torch.cat([numbers, torch.tensor([65519.0, 65520, 2.0**-25, 1.5 * 2.0**-25])])
    numbers = numbers[: len(numbers) // BLOCK * BLOCK]
    back = torch.empty(len(numbers), dtype=torch.int16)
    convert = 'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to[i]) : "f"(from[i]));'
    run("const float* from, short* to", convert, numbers, back, grid=len(numbers) // BLOCK)
    found, expected = back.view(torch.float16), numbers.half()
    assert torch.equal(found.isnan(), expected.isnan())
    is_number = ~expected.isnan()
    assert torch.equal(back[is_number], expected.view(torch.int16)[is_number])


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize(
    "name, source",
    [
        ("__shfl_up_sync", lambda lane, width: max(lane - 3, -1)),
        ("__shfl_down_sync", lambda lane, width: lane + 3),
        ("__shfl_xor_sync", lambda lane, width: lane ^ 3),
        ("__shfl_sync", lambda lane, width: 3),
    ],
    ids=["up", "down", "xor", "from"],
)
def test_shuffles(name, source, width):
    x = torch.arange(BLOCK, dtype=torch.int32)
    y = zeros()
    run("const int* x, int* y", f"y[i] = {name}(~0u, x[i], 3, {width});", x, y)
    for thread in range(BLOCK):
        lane = thread % width
        there = source(lane, width)
        expected = thread - lane + there if 0 <= there < width else thread
        assert y[thread] == expected


def test_shuffles_of_doubles_and_of_some_lanes():
    x = torch.randn(BLOCK, dtype=torch.float64)
    y = zeros(dtype=torch.float64)
    body = """
        const unsigned half = i % 32 < 16 ? 0xffffu : 0xffff0000u;
        double sum = x[i];
        for (int apart = 8; apart; apart /= 2) sum += __shfl_xor_sync(half, sum, apart);
        if (i % 32 < 16) sum += __shfl_xor_sync(0xffffu, sum, 1); else sum = -sum;
        y[i] = sum;
    """
    run("const double* x, double* y", body, x, y)
    sums = x.view(-1, 2, 16).sum(2)
    expected = torch.stack([2 * sums[:, 0], -sums[:, 1]], dim=1)
    torch.testing.assert_close(y.view(-1, 2, 16), expected[:, :, None].expand(-1, -1, 16))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("if (i < 9) x[i] = __shfl_sync(~0u, x[i], 0);", id="left-out"),
        pytest.param("x[i] = __shfl_sync(i % 2 ? 1u : ~0u, x[i], 0);", id="another-mask"),
    ],
)
def test_lanes_that_wait_for_one_another_are_told(body):
    with pytest.raises(RuntimeError, match="kernel: threads wait at shuffles or barriers"):
        run("int* x", body, zeros())


def test_a_lane_outside_the_mask_sends_garbage():
    x = torch.ones(BLOCK, dtype=torch.int32)
    run("int* x", "if (i < 16) x[i] = __shfl_sync(0xffffu, x[i], 16);", x)
    assert (x[:16] != 1).all() and (x[16:] == 1).all()


def test_atomics():
    y = torch.tensor([0, 0, 1000, 0, 0, 7], dtype=torch.int32)
    old = zeros()
    body = """
        old[i] = atomicAdd(y, 1);
        atomicMax(y + 1, i);
        atomicMin(y + 2, i + 100);
        atomicOr(y + 3, i);
        atomicCAS(y + 4, i, i + 1);
        if (i == 9) old[9] = atomicExch(y + 5, 8);
    """
    counted = run("int* y, int* old", body, y, old)
    assert y.tolist() == [BLOCK, BLOCK - 1, 100, BLOCK - 1, BLOCK, 8]
    expected = torch.arange(BLOCK, dtype=torch.int32)
    expected[9] = 7
    assert torch.equal(old, expected)
    # The last one is not executed by most threads.
    assert counted.instructions["atomic"] == 5 * BLOCK + 1


@pytest.mark.parametrize(
    "type, dtype, size",
    [
        ("int2", torch.int32, 2),
        ("float4", torch.float32, 4),
        ("double2", torch.float64, 2),
    ],
)
def test_vectors_are_one_load_and_one_store(type, dtype, size):
    x = torch.arange(size * BLOCK).to(dtype)
    y = zeros(size * BLOCK, dtype)
    counted = run(f"const {type}* x, {type}* y", "y[i] = x[i];", x, y)
    assert torch.equal(y, x)
    assert counted.instructions["global load"] == counted.instructions["global store"] == BLOCK


def test_local_memory():
    y = zeros(dtype=torch.int64)
    body = """
        int reversed[8];
        for (int j = 0; j < 8; j++) reversed[7 - j] = 10 * j + i;
        y[i] = reversed[(i + num) % 8];
    """
    counted = run("long long* y, long long num", body, y, 5)
    assert y.tolist() == [10 * (7 - (i + 5) % 8) + i for i in range(BLOCK)]
    assert counted.instructions["local load"] == BLOCK


@pytest.mark.parametrize("number", [0, 1, 7])
def test_the_instructions_of_a_loop_are_counted(number):
    x, y = torch.arange(8.0), zeros(dtype=torch.float32)
    body = """
        float sum = 0;
        #pragma unroll 1
        for (long long j = 0; j < number; j++) sum += exp2f(x[j]);
        y[i] = sum;
    """
    counted = run("const float* x, float* y, long long number", body, x, y, number).instructions
    assert (y == x[:number].exp2().sum()).all()
    assert counted["global load"] == counted["special function"] == number * BLOCK
    assert counted["global store"] == BLOCK
    assert counted["parameter"] == 3 * BLOCK
    assert counted["atomic"] == counted["shuffle"] == 0


@pytest.mark.parametrize("block", [32, 96, 1024])
def test_shared_memory_and_barriers(block):
    x, y = torch.arange(3 * block, dtype=torch.int32), zeros(3 * block)
    body = """
        __shared__ int kept[1024];
        __shared__ long long twice[1024];
        const int t = threadIdx.x, size = blockDim.x;
        kept[t] = x[i];
        twice[t] = 2 * x[i];
        __syncthreads();
        y[i] = kept[size - 1 - t] + (int)(twice[(t + 1) % size] / 2);
    """
    counted = run("const int* x, int* y", body, x, y, grid=3, block=block).instructions
    blocks = x.view(3, block)
    assert torch.equal(y.view(3, block), blocks.flip(1) + blocks.roll(-1, 1))
    assert counted["barrier"] == 3 * block
    assert counted["shared load"] == counted["shared store"] == 6 * block


def test_shared_memory_starts_with_garbage():
    y = torch.zeros(2, dtype=torch.int32)
    body = "__shared__ int kept[9]; y[blockIdx.x] = kept[5]; __syncthreads(); kept[5] = 1;"
    run("int* y", body, y, grid=2)
    assert y[0] == y[1] != 0


def test_barriers_that_count():
    y = zeros(5)
    body = """
        const int votes[5] = {__syncthreads_or(i == 9), __syncthreads_or(i < 0),
            __syncthreads_and(i >= 0), __syncthreads_and(i), __syncthreads_count(i % 4 == 0)};
        for (int j = 0; j < 5; ++j) atomicAdd(y + j, votes[j]);
    """
    run("int* y", body, y)
    assert y.tolist() == [BLOCK, 0, BLOCK, 0, BLOCK * BLOCK // 4]


def test_shuffles_between_barriers_of_a_whole_block():
    x, y = torch.arange(BLOCK, dtype=torch.int32), zeros()
    body = """
        __shared__ int sums[8];
        int sum = x[i];
        for (int apart = 16; apart; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
        if (i % 32 == 0) sums[i / 32] = sum;
        __syncthreads();
        sum = sums[i % 8];
        for (int apart = 4; apart; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
        y[i] = sum;
    """
    run("const int* x, int* y", body, x, y)
    assert (y == x.sum()).all()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("if (i < 9) __syncthreads(); x[i] = 0;", id="left-out"),
        pytest.param(
            "if (i % 2) { __syncthreads(); x[i] = 1; } else { x[i] = 2; __syncthreads(); }",
            id="another-barrier",
        ),
    ],
)
def test_threads_that_wait_for_one_another_at_barriers_are_told(body):
    with pytest.raises(RuntimeError, match="kernel: threads wait at shuffles or barriers"):
        run("int* x", body, zeros())


def test_blocks_of_whole_warps_only():
    for block in (33, 2048):
        with pytest.raises(RuntimeError, match="whole warps"):
            run("int* x", "__syncthreads(); x[0] = 1;", zeros(), block=block)


def test_an_unknown_instruction_is_told():
    with pytest.raises(NotImplementedError, match=r"the PTX instruction trap"):
        run("int* x", "__trap();", zeros())
    with pytest.raises(NotImplementedError, match=r"the PTX instruction add\.sat\.s32"):
        translate(".visible .entry kernel(\n)\n{\n\tadd.sat.s32 \t%r1, %r2, 3;\n}\n")


def test_what_is_no_instruction_is_told():
    with pytest.raises(NotImplementedError, match="inline"):
        translate(".visible .entry kernel(\n)\n{\n\t.inline 3\n}\n")


def test_more_shared_memory_than_a_block_has_is_told():
    body = (
        "__shared__ int y[12000], z[300]; y[i] = z[i] = i; __syncthreads(); x[i] = y[x[i]] + z[i];"
    )
    with pytest.raises(NotImplementedError, match="49200 bytes of shared memory"):
        run("int* x", body, zeros())


def test_an_error_of_the_compiler_is_told():
    with pytest.raises(RuntimeError, match="NAME"):
        run("int* x", "*x = NAME;", zeros())


@pytest.mark.full
def test_the_instructions_of_every_operation_are_printed(capsys):
    main(["--direction", "both"])
    *_, names, first, second, forward, backward, _, last = capsys.readouterr().out.splitlines()
    assert names.split() == ["launches", "all", *COLUMNS]
    assert [row.split()[0] for row in (first, second)] == ["minimum_spanning_forest", "root_forest"]
    assert forward.startswith("tree_scan, both ") and backward.startswith("tree_scan, both, grad")
    assert last.startswith("selective_tree_scan, both, gradients")
    num_launches, total, *columns = map(float, last.split()[3:])
    assert num_launches == 3
    assert sum(columns) == pytest.approx(total, abs=1)
