"""Text that is safe and readable on a terminal: control characters out, numbers in a person's units."""

from __future__ import annotations

import math
import unicodedata

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LINE_BREAKS = "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\x85"
# Marks that turn the direction of the text around them, and so can make a line read as another.
_TURNING = "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def legible(text: str, *, encoding: str = "utf-8", lines: bool = False) -> str:
    """`text` as it may be shown: no control characters, nothing that `encoding` cannot write.

    Text that a person, a file or a model wrote could otherwise move the cursor, set the clipboard or hide a line.

    Args:
        text: anything.
        encoding: of the stream; what it lacks becomes a question mark.
        lines: keep line breaks and tabs; otherwise they become spaces.
    """
    text = text.replace("\r\n", "\n")
    shown = "".join(_shown(character, lines) for character in text)
    return shown.encode(encoding, errors="replace").decode(encoding)


def _shown(character: str, lines: bool) -> str:
    if character in "\n\t":
        return character if lines else " "
    if character in _LINE_BREAKS:
        return "\n" if lines else " "
    if character in _TURNING or unicodedata.category(character) in ("Cc", "Cs"):
        return _REPLACEMENT
    return character


def duration(seconds: float) -> str:
    """8 s, 4 min 05 s, 2 h 07 min, 3 d 04 h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size:02d} {smaller}"
    return f"{whole} s"


def quantity(number: float) -> str:
    """937, 12.3 k, 4.56 M, 1.23 G: three digits and a decimal prefix; beyond that 1.2e15."""
    if not math.isfinite(number):
        return "?"
    if abs(number) < 1000:
        return f"{number:.0f}" if float(number).is_integer() else f"{number:.3g}"
    if abs(number) >= 1e15:
        return f"{number:.2e}".replace("e+", "e")
    for size, prefix in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if abs(number) < 999.5 * size:
            scaled = number / size
            return f"{scaled:.{max(0, 3 - len(str(int(abs(scaled)))))}f} {prefix}"
    return f"{number:.2e}".replace("e+", "e")


def memory(count: int) -> str:
    """512 MiB, 1.4 GiB."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def money(amount: float) -> str:
    """0.0042, 0.13, 27.50: two digits after the point, more where the amount is small."""
    return f"{amount:.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.4f}"
