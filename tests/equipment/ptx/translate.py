"""Translates PTX to C++ that `runtime.h` gives its meaning."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

ENTRY = re.compile(
    r"^\.visible \.entry (?P<name>\w+)\([^)]*\)[^{]*\{(?P<body>.*?)^\}",
    re.DOTALL | re.MULTILINE,
)
REGISTERS = re.compile(r"\.reg \.(?P<type>\w+)\s+%(?P<name>\w+)(<(?P<number>\d+)>)?;")
LOCAL_MEMORY = re.compile(r"\.local \.align (?P<align>\d+) \.b8\s+(?P<name>\w+)\[(?P<size>\d+)\];")
SHARED_MEMORY = re.compile(
    r"^\s*\.shared \.align (?P<align>\d+) \.b8 (?P<name>\w+)\[(?P<size>\d+)\];", re.MULTILINE
)
# What a block has without asking for more, as runtime.h has it.
SHARED_SIZE = 48 * 1024
LABEL = re.compile(r"\$(?P<name>\w+):")
INSTRUCTION = re.compile(r"(?:@(?P<guard>!?%\w+)\s+)?(?P<opcode>[a-z][\w.]*)\s*(?P<operands>.*);")
# A list in braces, an address in brackets, or a word.
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")

SPECIAL_REGISTERS = {f"%{name}.x": f"thread.{name}" for name in ("tid", "ntid", "ctaid", "nctaid")}
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


class Translation(NamedTuple):
    """C++ with a function `launch_<entry>` and an array `executed_<entry>` for every entry: how
    often each of its blocks of instructions was executed, whose classes are told here.
    """

    text: str
    blocks: dict[str, list[Counter]]


class Group(NamedTuple):
    """Instructions that are translated by one function, from the parts of their opcode, the
    operands and the number of the line.
    """

    pattern: re.Pattern
    kind: str
    translate: Callable


# Filled by the functions below.
GROUPS: list[Group] = []


def translate(ptx: str) -> Translation:
    """All entries of a PTX text."""
    ptx = re.sub(r"//.*", "", ptx)
    places = _places_in_shared_memory(ptx)
    entries = [_Entry(match) for match in ENTRY.finditer(SHARED_MEMORY.sub("", ptx))]
    text = "\n".join(["namespace ptx {", *places, *(entry.text() for entry in entries), "}"])
    return Translation(text, {entry.name: entry.blocks for entry in entries})


def _places_in_shared_memory(ptx: str) -> list[str]:
    """The variables of all entries, one after another."""
    places, end = [], 0
    for match in SHARED_MEMORY.finditer(ptx):
        align = int(match["align"])
        begin = -(-end // align) * align
        places.append(f"constexpr u64 {match['name']} = {begin};")
        end = begin + int(match["size"])
    if end > SHARED_SIZE:
        raise NotImplementedError(f"{end} bytes of shared memory")
    return places


class _Entry:
    """One kernel; every line of its body adds lines of C++."""

    def __init__(self, match: re.Match):
        self.name = match["name"]
        self.blocks: list[Counter] = []
        self._lines: list[str] = []
        self._begin_block()
        for number, line in enumerate(match["body"].splitlines()):
            self._add(line.strip(), number)

    def text(self) -> str:
        has_waits = any(block["shuffle"] or block["barrier"] for block in self.blocks)
        run = "run_blocks" if has_waits else "run_threads"
        return "\n".join(
            [
                f'extern "C" {{ u64 executed_{self.name}[{len(self.blocks)}]; }}',
                f"static void kernel_{self.name}(const u64* arguments, Thread thread) {{",
                f"u64* const executed = executed_{self.name};",
                *self._lines,
                "}",
                f'extern "C" const char* launch_{self.name}(const u64* arguments, u32 grid, '
                f"u32 block) {{ return {run}(kernel_{self.name}, arguments, grid, block); }}",
            ]
        )

    def _add(self, line: str, number: int) -> None:
        if not line or line.startswith(".pragma"):
            return
        if line in "{}":
            self._lines.append(line)
        elif match := REGISTERS.fullmatch(line):
            self._declare_registers(**match.groupdict())
        elif match := LOCAL_MEMORY.fullmatch(line):
            self._lines.append("alignas({align}) char {name}[{size}];".format(**match.groupdict()))
        elif match := LABEL.fullmatch(line):
            self._lines.append(f"{match['name']}:")
            self._begin_block()
        elif match := INSTRUCTION.fullmatch(line):
            self._add_instruction(number, **match.groupdict())
        else:
            raise NotImplementedError(line)

    def _declare_registers(self, type: str, name: str, number: "str | None") -> None:
        names = [f"%{name}{i}" for i in range(int(number))] if number else [f"%{name}"]
        bits = "pred" if type == "pred" else f"u{type[1:]}"
        self._lines.append(f"{bits} {', '.join(f'{_register(name)} = 0' for name in names)};")

    def _add_instruction(self, number: int, guard: "str | None", opcode: str, operands: str):
        group, form = _group_of(opcode)
        statement = group.translate(form, *OPERAND.findall(operands), line=number)
        condition = f"if ({_guard(guard)}) " if guard else ""
        self.blocks[-1][group.kind] += 1
        self._lines.append(f"{condition}{{ {statement} }}")
        if group.kind == "branch":
            self._begin_block()

    def _begin_block(self) -> None:
        self._lines.append(f"++executed[{len(self.blocks)}];")
        self.blocks.append(Counter())


@cache
def _group_of(opcode: str) -> tuple[Group, dict]:
    for group in GROUPS:
        if match := group.pattern.fullmatch(opcode):
            return group, match.groupdict()
    raise NotImplementedError(f"the PTX instruction {opcode}")


def _guard(guard: str) -> str:
    return f"!{_register(guard[1:])}" if guard.startswith("!") else _register(guard)


def _register(name: str) -> str:
    return f"register_{name[1:]}"


def _read(operand: str, type: str) -> str:
    """An operand, read as a value of one type."""
    return f"as<{type}>({_bits(operand)})"


def _bits(operand: str) -> str:
    if operand in SPECIAL_REGISTERS:
        return SPECIAL_REGISTERS[operand]
    if operand.startswith("%"):
        return _register(operand)
    if match := re.fullmatch(r"0f([0-9A-F]{8})", operand):
        return f"0x{match[1]}u"
    if match := re.fullmatch(r"0d([0-9A-F]{16})", operand):
        return f"0x{match[1]}ull"
    if re.fullmatch(r"-?\d+", operand):
        return f"{int(operand) % 2**64:#x}ull"
    return f"reinterpret_cast<u64>({operand})"


def _set(result: str, value: str) -> str:
    return f"set({_register(result)}, {value});"


def _listed(operand: str) -> list[str]:
    """The operands of a list in braces, or the one operand."""
    return OPERAND.findall(operand.strip("{}"))


def _address(operand: str) -> str:
    base, _, offset = operand[1:-1].partition("+")
    return f"{_read(base, 'u64')} + {_read(offset or '0', 's64')}"


def _shared_address(operand: str) -> str:
    """An address of 32 bits, or a variable."""
    base, _, offset = operand[1:-1].partition("+")
    return f"shared({_read(base, 'u32')} + {_read(offset or '0', 's64')})"


def _group(kind: str, pattern: str) -> Callable:
    """Puts a function into the table, for opcodes of a pattern and what they are counted as."""

    def put(function: Callable) -> Callable:
        GROUPS.append(Group(re.compile(pattern), kind, function))
        return function

    return put


FLOATING = r"(?P<type>f32|f64)"
INTEGER = r"(?P<type>[su](?:16|32|64))"
BITS = r"(?P<type>[bu](?:16|32|64)|pred)"


@_group("floating point", rf"(?P<name>add|sub|mul|fma|neg|abs)(\.rn)?(?P<ftz>\.ftz)?\.{FLOATING}")
@_group("special function", r"(?P<name>ex2)\.approx(?P<ftz>\.ftz)?\.(?P<type>f32)")
@_group("integer", rf"(?P<name>add|sub|min|max|neg)\.{INTEGER}")
@_group("integer", rf"(?P<name>mul|mad)\.lo\.{INTEGER}")
@_group("integer division", rf"(?P<name>div|rem)\.{INTEGER}")
def _computed(form, result, *operands, line):
    values = [_read(operand, form["type"]) for operand in operands]
    return _set(result, _flushed(form, f"{form['name']}({_list(form, values)})"))


COMPARISON = r"setp\.(?P<name>eq|ne|lt|le|gt|ge)"
COMPARISON_OF_FLOATS = r"setp\.(?P<name>(?:eq|ne|lt|le|gt|ge)u?|num|nan)(?P<ftz>\.ftz)?"


@_group("floating point", rf"{COMPARISON_OF_FLOATS}\.{FLOATING}")
@_group("integer", rf"{COMPARISON}\.(?P<type>[bsu](?:16|32|64))")
def _compared(form, result, *operands, line):
    values = [_read(operand, form["type"]) for operand in operands]
    return _set(result, f"{form['name']}({_list(form, values)})")


def _list(form: dict, values: list[str]) -> str:
    return ", ".join(_flushed(form, value) for value in values)


def _flushed(form: dict, value: str) -> str:
    return f"flush({value})" if form.get("ftz") else value


@_group("integer", rf"(?P<name>and|or|xor|not)\.{BITS}")
def _bitwise(form, result, *operands, line):
    values = ", ".join(_read(operand, form["type"]) for operand in operands)
    return _set(result, f"bit_{form['name']}({values})")


@_group("integer", r"(?P<name>shl)\.(?P<type>b(?:16|32|64))")
@_group("integer", rf"(?P<name>shr)\.{INTEGER}")
def _shifted(form, result, value, count, line):
    return _set(result, f"{form['name']}({_read(value, form['type'])}, {_read(count, 'u32')})")


@_group("integer", rf"mul\.hi\.{INTEGER}")
def _multiplied_high(form, result, *operands, line):
    values = ", ".join(_read(operand, form["type"]) for operand in operands)
    return _set(result, f"mul_hi({values})")


@_group("integer", r"bfi\.(?P<type>b(?:32|64))")
def _inserted(form, result, inserted, into, first, number, line):
    values = (_read(operand, form["type"]) for operand in (inserted, into))
    range = (_read(operand, "u32") for operand in (first, number))
    return _set(result, f"insert({', '.join([*values, *range])})")


@_group("integer", r"prmt\.(?P<type>b32)")
def _permuted(form, result, *operands, line):
    values = ", ".join(_read(operand, "u32") for operand in operands)
    return _set(result, f"permute({values})")


@_group("integer", r"mul\.wide\.(?P<type>[su](?:16|32))")
def _multiplied_wide(form, result, *operands, line):
    wide = WIDE[form["type"]]
    factors = (f"{wide}({_read(operand, form['type'])})" for operand in operands)
    return _set(result, f"mul({', '.join(factors)})")


@_group("integer", r"cvt\.(?P<to>[su](?:16|32|64))\.(?P<type>[su](?:8|16|32|64))")
@_group("floating point", r"cvt\.rn\.(?P<to>f32|f64)\.(?P<type>[su](?:16|32|64))")
def _converted(form, result, value, line):
    return _set(result, f"static_cast<{form['to']}>({_read(value, form['type'])})")


@_group("floating point", r"cvt\.(?:rn\.)?(?P<to>f16|f32)\.(?P<type>f16|f32)")
def _converted_half(form, result, value, line):
    name, bits = ("float_to_half", "f32") if form["to"] == "f16" else ("half_to_float", "b16")
    return _set(result, f"{name}({_read(value, bits)})")


@_group("floating point", rf"selp\.{FLOATING}")
@_group("integer", r"selp\.(?P<type>[bsu](?:16|32|64))")
def _selected(form, result, if_true, if_false, condition, line):
    values = f"{_read(if_true, form['type'])} : {_read(if_false, form['type'])}"
    return _set(result, f"{_read(condition, 'pred')} ? {values}")


@_group("move", r"mov\.(?P<type>[bsuf](?:16|32|64)|pred)")
@_group("move", r"cvta\.to\.(?:global|local)\.(?P<type>u64)")
def _moved(form, result, value, line):
    if result.startswith("{"):
        return _unpacked(_listed(result), _read(value, form["type"]))
    if value.startswith("{"):
        low, high = (f"u64({_read(half, 'u32')})" for half in _listed(value))
        return _set(result, f"{low} | {high} << 32")
    return _set(result, _read(value, form["type"]))


def _unpacked(halves: list[str], value: str) -> str:
    low, high = halves
    return f"const u64 both = {value}; {_set(low, 'both')} {_set(high, 'both >> 32')}"


@_group("parameter", r"ld\.param\.(?P<type>[bsuf](?:32|64))")
def _taken(form, result, name, line):
    # Every parameter is a word of the launch, and PTX numbers them.
    number = name[1:-1].rpartition("_")[2]
    return _set(result, f"as<{form['type']}>(arguments[{number}])")


VALUES = r"(?:\.v[24])?\.(?P<type>[bsuf](?P<bits>8|16|32|64))"


@_group("global load", rf"ld(?:\.volatile)?\.global{VALUES}")
@_group("local load", rf"ld\.local{VALUES}")
def _loaded(form, results, source, line):
    return _loads(form, results, _address(source))


def _loads(form: dict, results: str, address: str) -> str:
    size = int(form["bits"]) // 8
    loads = (
        _set(result, f"load<{form['type']}>(address + {size * place})")
        for place, result in enumerate(_listed(results))
    )
    return f"const u64 address = {address}; {' '.join(loads)}"


@_group("global store", rf"st(?:\.volatile)?\.global{VALUES}")
@_group("local store", rf"st\.local{VALUES}")
def _stored(form, target, values, line):
    return _stores(form, values, _address(target))


def _stores(form: dict, values: str, address: str) -> str:
    size = int(form["bits"]) // 8
    stores = (
        f"store(address + {size * place}, {_read(value, form['type'])});"
        for place, value in enumerate(_listed(values))
    )
    return f"const u64 address = {address}; {' '.join(stores)}"


@_group("shared load", rf"ld(?:\.volatile)?\.shared{VALUES}")
def _loaded_from_shared(form, results, source, line):
    return _loads(form, results, _shared_address(source))


@_group("shared store", rf"st(?:\.volatile)?\.shared{VALUES}")
def _stored_to_shared(form, target, values, line):
    return _stores(form, values, _shared_address(target))


FETCH = r"\.global\.(?P<name>add|min|max|and|or|xor|exch)\.(?P<type>[bsuf](?:32|64))"
FETCH_NAMES = {"and": "bit_and", "or": "bit_or", "xor": "bit_xor", "exch": "second"}


@_group("atomic", rf"atom{FETCH}")
def _fetched(form, result, target, value, line):
    return _set(result, _fetch(form, target, value))


@_group("atomic", rf"red{FETCH}")
def _reduced(form, target, value, line):
    return f"{_fetch(form, target, value)};"


def _fetch(form: dict, target: str, value: str) -> str:
    name = FETCH_NAMES.get(form["name"], form["name"])
    return f"fetch({name}<{form['type']}>, {_address(target)}, {_read(value, form['type'])})"


@_group("atomic", r"atom\.global\.cas\.(?P<type>b(?:32|64))")
def _compared_and_swapped(form, result, target, expected, value, line):
    values = ", ".join(_read(operand, form["type"]) for operand in (expected, value))
    return _set(result, f"cas({_address(target)}, {values})")


@_group("shuffle", r"shfl\.sync\.(?P<name>up|down|bfly|idx)\.b32")
def _shuffled(form, results, value, b, c, mask, line):
    result, _, is_inside = results.partition("|")
    value, b, c, mask = (_read(operand, "u32") for operand in (value, b, c, mask))
    return " ".join(
        [
            f"const Source source = {form['name']}(thread, {b}, {c});",
            _set(is_inside, "source.is_inside") if is_inside else "",
            _set(result, f"receive({line}, {mask}, {value}, source.lane)"),
        ]
    )


# One barrier, number 0, is for all threads of a block.
@_group("barrier", r"bar(?:rier)?\.sync")
def _synchronized(form, barrier, line):
    return f"{_synchronize(barrier, 'false', line)};"


VOTES = {"or": "{} > 0", "and": "{} == thread.ntid", "popc": "{}"}


@_group("barrier", r"bar(?:rier)?\.red\.(?P<name>or|and)\.pred")
@_group("barrier", r"bar(?:rier)?\.red\.(?P<name>popc)\.u32")
def _voted(form, result, barrier, predicate, line):
    number = _synchronize(barrier, _read(predicate, "pred"), line)
    return _set(result, VOTES[form["name"]].format(number))


def _synchronize(barrier: str, predicate: str, line: int) -> str:
    if barrier != "0":
        raise NotImplementedError(f"the barrier {barrier}")
    return f"synchronize({line}, {predicate})"


@_group("branch", r"bra(?:\.uni)?")
def _branched(form, label, line):
    return f"goto {label[1:]};"


@_group("branch", r"ret")
def _returned(form, line):
    return "return;"
