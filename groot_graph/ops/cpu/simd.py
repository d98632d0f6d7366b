r"""SIMD vectors for Numba kernels: 32 float32 or 16 float64 channels of one row at a time.

Numba cannot be told that rows do not overlap, so its own loops over a few hundred channels spend
their time on overlap checks. Loads and stores of whole vectors need none.
"""

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model
from torch import Tensor

# Two of the widest registers, so that one's arithmetic hides the other's latency; LLVM splits them
# where registers are narrower.
VECTOR_BITS = 1024

# Bytes, the smallest that is common, so that no line of a vector is left out.
CACHE_LINE = 64


def flat(tensor: Tensor) -> np.ndarray:
    r"""A tensor's elements as the flat array that vectors are loaded from and stored to."""
    return all_flat(tensor)[0]


def all_flat(*tensors: Tensor) -> list[np.ndarray]:
    r"""The flat array of every tensor."""
    arrays = []
    for tensor in tensors:
        arrays.append(tensor.detach().contiguous().view(-1).numpy())
    return arrays


class Vector(types.Type):
    def __init__(self, dtype):
        self.dtype = dtype
        self.lanes = VECTOR_BITS // dtype.bitwidth
        super().__init__(name=f"Vector({dtype} x {self.lanes})")


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        scalar = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(scalar, fe_type.lanes))


def _address(context, builder, array_type, array, offset, vector):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    pointer = builder.gep(data, [offset])
    return builder.bitcast(pointer, context.get_value_type(vector).as_pointer())


def _first_lanes(builder, vector, count):
    r"""A mask of the first `count` lanes."""
    index = ir.VectorType(count.type, vector.lanes)
    lane_numbers = ir.Constant(index, list(range(vector.lanes)))
    return builder.icmp_signed("<", lane_numbers, _splat(builder, index, count))


def _splat(builder, vector_type, value):
    index = ir.IntType(32)
    undefined = ir.Constant(vector_type, ir.Undefined)
    single = builder.insert_element(undefined, value, index(0))
    every_lane = ir.Constant(ir.VectorType(index, vector_type.count), [0] * vector_type.count)
    return builder.shuffle_vector(single, undefined, every_lane)


def _call(builder, name, vector, return_type, *args):
    r"""Calls an LLVM intrinsic on vectors."""
    function_type = ir.FunctionType(return_type, [arg.type for arg in args])
    name = f"llvm.{name}.v{vector.lanes}f{vector.dtype.bitwidth}"
    if "masked" in name:
        name += ".p0"
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, args)


@intrinsic
def load_whole(typingctx, array, offset):
    r"""The vector that starts at `offset` of a flat array."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args, vector)
        return builder.load(address, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), codegen


@intrinsic
def _load_first(typingctx, array, offset, count):
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args[:2], vector)
        vector_type = context.get_value_type(vector)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        mask = _first_lanes(builder, vector, args[2])
        zero = ir.Constant(vector_type, [0.0] * vector.lanes)
        return _call(builder, "masked.load", vector, vector_type, address, align, mask, zero)

    return vector(array, types.intp, types.intp), codegen


@intrinsic
def store_whole(typingctx, array, offset, value):
    r"""Writes a vector to `offset` of a flat array."""

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args[:2], value)
        builder.store(args[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def _store_first(typingctx, array, offset, count, value):
    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args[:2], value)
        align = ir.IntType(32)(array.dtype.bitwidth // 8)
        mask = _first_lanes(builder, value, args[2])
        _call(builder, "masked.store", value, ir.VoidType(), args[3], address, align, mask)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


@intrinsic
def prefetch(typingctx, array, offset):
    r"""Asks for the vector at `offset` of a flat array, which may lie outside it."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        address = _address(context, builder, signature.args[0], *args, vector)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        first = builder.bitcast(address, byte)
        for start in range(0, VECTOR_BITS // 8, CACHE_LINE):
            line = builder.gep(first, [context.get_constant(types.intp, start)])
            builder.call(function, [line, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@njit(forceinline=True)
def load(array, offset, count):
    r"""The vector from `offset` of a flat array on, zeros past the first `count` elements."""
    if count >= lanes(array):
        return load_whole(array, offset)
    return _load_first(array, offset, count)


@njit(forceinline=True)
def store(array, offset, count, value):
    r"""Writes the first `count` elements of a vector, or all, from `offset` of a flat array on."""
    if count >= lanes(array):
        store_whole(array, offset, value)
    else:
        _store_first(array, offset, count, value)


@intrinsic
def zeros(typingctx, array):
    r"""The vector of zeros that fits an array."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(vector), [0.0] * vector.lanes)

    return vector(array), codegen


@intrinsic
def splat(typingctx, scalar):
    r"""The vector that holds a scalar in every lane."""
    vector = Vector(scalar)

    def codegen(context, builder, signature, args):
        return _splat(builder, context.get_value_type(vector), args[0])

    return vector(scalar), codegen


@intrinsic
def multiply_add(typingctx, first, second, third):
    r"""first * second + third, rounded once."""

    def codegen(context, builder, signature, args):
        return _call(builder, "fma", first, args[0].type, *args)

    return first(first, first, first), codegen


@intrinsic
def subtract_product(typingctx, first, second, third):
    r"""first - second * third, rounded once."""

    def codegen(context, builder, signature, args):
        return _call(builder, "fma", first, args[0].type, builder.fneg(args[1]), args[2], args[0])

    return first(first, first, first), codegen


@intrinsic
def multiply(typingctx, first, second):
    r"""first * second."""

    def codegen(context, builder, signature, args):
        return builder.fmul(*args)

    return first(first, first), codegen


@intrinsic
def add(typingctx, first, second):
    r"""first + second."""

    def codegen(context, builder, signature, args):
        return builder.fadd(*args)

    return first(first, first), codegen


@intrinsic
def subtract(typingctx, first, second):
    r"""first - second."""

    def codegen(context, builder, signature, args):
        return builder.fsub(*args)

    return first(first, first), codegen


@intrinsic
def sum_of_lanes(typingctx, vector):
    r"""The sum of a vector's lanes, halves added to halves."""

    def codegen(context, builder, signature, args):
        value, width = args[0], vector.lanes
        while width > 1:
            width //= 2
            index = ir.VectorType(ir.IntType(32), width)
            undefined = ir.Constant(value.type, ir.Undefined)
            low = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(width))))
            upper_half = ir.Constant(index, list(range(width, 2 * width)))
            high = builder.shuffle_vector(value, undefined, upper_half)
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.IntType(32)(0))

    return vector.dtype(vector), codegen


@intrinsic
def exponential(typingctx, vector):
    r"""e to the power of every lane."""

    def codegen(context, builder, signature, args):
        if vector.dtype == types.float64:
            return _call(builder, "exp", vector, args[0].type, args[0])
        return _exponential_float32(builder, vector, args[0])

    return vector(vector), codegen


# e^r = 1 + r + r² (c0 + c1 r + ...) for |r| <= ln(2) / 2, the minimax polynomial of the Cephes
# library.
EXPONENTIAL_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# ln(2) in two parts, so that n ln(2) is subtracted without rounding.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LOWEST_EXPONENT, HIGHEST_EXPONENT = -87.0, 88.0


def _exponential_float32(builder, vector, x):
    r"""e^x = 2^n e^r with n = round(x / ln 2): two roundings at most away from the true value."""
    float_type = x.type
    int_type = ir.VectorType(ir.IntType(32), vector.lanes)

    def constant(value):
        return ir.Constant(float_type, [float(np.float32(value))] * vector.lanes)

    def fma(first, second, third):
        return _call(builder, "fma", vector, float_type, first, second, third)

    n = _call(builder, "rint", vector, float_type, builder.fmul(x, constant(1.4426950408889634)))
    r = fma(n, constant(-LN2_LOW), fma(n, constant(-LN2_HIGH), x))
    polynomial = constant(EXPONENTIAL_COEFFICIENTS[0])
    for coefficient in EXPONENTIAL_COEFFICIENTS[1:]:
        polynomial = fma(polynomial, r, constant(coefficient))
    mantissa = builder.fadd(fma(builder.fmul(r, r), polynomial, r), constant(1.0))

    exponent = builder.add(builder.fptosi(n, int_type), ir.Constant(int_type, [127] * vector.lanes))
    power = builder.bitcast(
        builder.shl(exponent, ir.Constant(int_type, [23] * vector.lanes)), float_type
    )
    value = builder.fmul(mantissa, power)
    too_low = builder.fcmp_ordered("<", x, constant(LOWEST_EXPONENT))
    too_high = builder.fcmp_ordered(">", x, constant(HIGHEST_EXPONENT))
    value = builder.select(too_low, constant(0.0), value)
    return builder.select(too_high, constant(np.inf), value)


@intrinsic
def lanes(typingctx, array):
    r"""How many elements of an array one vector holds, a constant."""
    count = Vector(array.dtype).lanes

    def codegen(context, builder, signature, args):
        return context.get_constant(types.intp, count)

    return types.intp(array), codegen
