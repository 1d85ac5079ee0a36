"""Wrong versions of sound files: bytes turned, cut and spliced, numbers forged, nesting without end, values of another kind.

Every mutation is a function of the random generator it is given, so a number gives an input back for good.
"""

from __future__ import annotations

import json
import random
import re
import struct
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tomli_w

Structure = Literal["bytes", "text", "json", "lines", "toml", "safetensors", "npy"]

NUMBERS = (
    0, 1, -1, 2, 127, 128, 255, 256, 65_535, 2**24 - 1, 2**24, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**53, 2**62,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**30, 10**400,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"), "", "x", "none", "auto", "../../x",
    "/etc/passwd", "a\0b", "\x1b]52;c;AAAA\x07", "\r\nerror: nothing", "\ud800", "9" * 5000, "x" * 50_000, "{{7*7}}",
    "__import__('os').system('id')", "step-00000001", [], {}, [[]], [None], {"": None}, {"kind": "text"}, [1, "x", None],
)  # fmt: skip
TEXTS = (
    b"nan", b"inf", b"-1", b"1e999", b"9" * 5000, b"9" * 400, b"0x10", b"null", b"true", b'""', b"[]", b"{}", b"\0",
    b"\x1b[2J", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r\n", b"\n\n", b"../../x", b"/etc/passwd", b"${HOME}", b"%s%n",
    b"\\u0000", b"\\ud800", b"!!python/object/apply:os.system ['id']", b"cos\nsystem\n(S'id'\ntR.", b"\x80\x04.",
)  # fmt: skip
DEEP = (1_000, 20_000, 100_000)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_LARGEST = 400_000
"""bytes of an input"""


def mutated(draw: random.Random, content: bytes, others: Sequence[bytes], structure: Structure) -> bytes:
    """A wrong version of `content`; `others` are sound files to splice with."""
    ways: list[Callable[[], bytes]] = [lambda: _bytes(draw, content, others)]
    if structure in ("text", "json", "lines", "toml"):
        ways += [lambda: _text(draw, content)] * 2
    if structure == "json":
        ways += [lambda: _as_json(draw, content)] * 4
    if structure == "lines":
        ways += [lambda: _line(draw, content)] * 4
    if structure == "toml":
        ways += [lambda: _as_toml(draw, content)] * 3
    if structure == "safetensors":
        ways += [lambda: _header(draw, content)] * 3
    if structure == "npy":
        ways += [lambda: _array(draw, content)] * 3
    return draw.choice(ways)()[:_LARGEST]


def _bytes(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, to = sorted(draw.randrange(len(made) + 1) for _ in range(2))
        match draw.randrange(9):
            case 0 if made:
                for _ in range(draw.choice((1, 1, 8))):
                    made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
            case 1:
                del made[at:]
            case 2:
                made[at : at + 4096] = bytes(min(4096, len(made) - at))
            case 3:
                del made[at : at + draw.choice((1, 2, 8, to - at))]
            case 4:
                made[at:at] = made[at:to][:1000] * draw.choice((1, 2, 20))
            case 5:
                other = draw.choice(others) if others else bytes(made)
                made[at:] = other[draw.randrange(len(other) + 1) :] if other else b""
            case 6:
                made[at:at] = draw.randbytes(draw.choice((1, 4, 64)))
            case 7:
                _put_number(draw, made, at if draw.random() < 0.3 else draw.randrange(64))
            case _:
                made[at:at] = draw.choice(TEXTS)
    return bytes(made)


def _put_number(draw: random.Random, made: bytearray, at: int) -> None:
    """A whole number over the bytes there, as lengths and counts are stored."""
    form = draw.choice(["<H", "<i", "<I", "<q", "<Q", ">I"])
    size = struct.calcsize(form)
    value = draw.choice(NUMBERS) % (1 << 8 * size)
    packed = value.to_bytes(size, "big" if form[0] == ">" else "little")
    at -= at % size
    made[at : at + size] = packed


def _text(draw: random.Random, content: bytes) -> bytes:
    """A change that whoever writes by hand, or with bad will, might make."""
    lines = content.split(b"\n")
    which = draw.randrange(len(lines))
    match draw.randrange(6):
        case 0:
            found = list(_NUMBER.finditer(content))
            if found:
                one = draw.choice(found)
                value = draw.choice((*TEXTS[:8], *(str(n).encode() for n in NUMBERS)))
                return content[: one.start()] + value + content[one.end() :]
        case 1:
            at = draw.randrange(len(content) + 1)
            return content[:at] + draw.choice(b"[ { ( \" ' = . a.".split()) * draw.choice(DEEP) + content[at:]
        case 2:
            del lines[which]
        case 3:
            lines.insert(draw.randrange(len(lines) + 1), lines[which])
        case 4:
            lines[which] = draw.choice(TEXTS) + lines[which]
        case _:
            left, equals, _ = lines[which].partition(b"=")
            lines[which] = left + equals + draw.choice(TEXTS)
    return b"\n".join(lines)


def changed_tree(draw: random.Random, tree: Any) -> Any:
    """A JSON-ready value with something in it that is of another kind, missing, renamed, or of an absurd size."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if not places or draw.random() < 0.02:
        return draw.choice((*VALUES, *NUMBERS))
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        node, key = draw.choice(places)
        if (isinstance(node, list) and key >= len(node)) or (isinstance(node, dict) and key not in node):
            continue
        match draw.randrange(6):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[str(draw.choice(("../../x", "", "a\0b", "kind", "x" * 3000, "\x1b[2J", "..", "/x", key)))] = node[
                    key
                ]
            case 2:
                other, place = draw.choice(places)
                if (isinstance(other, dict) and place in other) or (isinstance(other, list) and place < len(other)):
                    node[key] = json.loads(json.dumps(other[place]))
            case 3:
                node[key] = draw.choice(NUMBERS)
            case 4 if isinstance(node[key], list) and len(node[key]) < 200:
                node[key] = node[key] * draw.choice((2, 50))
            case _:
                node[key] = json.loads(json.dumps(draw.choice(VALUES)))
    return tree


def _as_json(draw: random.Random, content: bytes) -> bytes:
    tree = changed_tree(draw, json.loads(content))
    return json.dumps(tree, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _line(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    which = draw.randrange(len(lines))
    if lines[which]:
        lines[which] = _as_json(draw, lines[which])
    return b"\n".join(lines)


def _as_toml(draw: random.Random, content: bytes) -> bytes:
    tree = changed_tree(draw, tomllib.loads(content.decode()))
    try:
        return tomli_w.dumps(tree).encode("utf-8", "surrogatepass")
    except (TypeError, AttributeError, ValueError):
        return _text(draw, content)  # TOML has no such value


def _header(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header is well-formed JSON and lies."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(changed_tree(draw, json.loads(content[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


_SHAPES = (
    "(4,)", "(2, 2)", "()", "(-4,)", "(-2, -8)", "(0,)", "(9223372036854775807,)", "(4611686018427387904, 4)",
    "(18446744073709551616, 1)", "(1000000000000,)", "(16, 1)", "(True,)", "(1e3,)", "[4]", "4", "None",
)  # fmt: skip
_DTYPES = ("<u2", "<i8", ">u4", "|O", "<f4", "|S9999999", "<U2000000000", "V8", "[('a','<i4')]", "i4,i4", "x", "")


def _array(draw: random.Random, content: bytes) -> bytes:
    """A .npy file whose header reads well and lies; of an archive the first entry is taken to be one."""
    start = content.find(b"\x93NUMPY")
    if start < 0:
        return content
    told = f"{{'descr': {draw.choice(_DTYPES)!r}, 'fortran_order': {draw.choice(('True', 'False', '0'))}, "
    text = f"{told}'shape': {draw.choice(_SHAPES)}, }}"
    if draw.random() < 0.2:
        text = draw.choice(
            ("(" * 3000, "{'shape': " * 500, "__import__('os')", "1" * 9000, "", "{", "\0", " \n  x\n y")
        )
    header = text.encode().ljust(118) + b"\n"
    version = draw.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    size = struct.pack("<H" if version[0] == 1 else "<I", min(len(header), 65_535))
    return content[:start] + b"\x93NUMPY" + version + size + header + content[start + 128 :]
