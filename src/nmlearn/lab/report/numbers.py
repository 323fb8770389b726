"""Numbers for readers: sensible digits, a real minus sign, a dash for unknown values."""

from __future__ import annotations

import math

UNKNOWN = "–"
SPACE = "\u202f"  # narrow no-break space


def finite(value: object) -> float | None:
    """`value` as a float, or None when it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def fixed(value: object, digits: int, *, signed: bool = False) -> str:
    """With `digits` decimals; thousands are separated; `signed` also writes a plus."""
    number = finite(value)
    if number is None:
        return UNKNOWN
    text = f"{abs(number):,.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return ("\u2212" if number < 0 else "+" if signed else "") + text


def significant(value: object, digits: int = 3) -> str:
    """With `digits` significant digits: 0.00123, 12.3, 1,230."""
    number = finite(value)
    if number is None:
        return UNKNOWN
    if number == 0:
        return "0"
    size = math.floor(math.log10(abs(number)))
    if not -5 <= size < 7:
        return f"{number:.{digits - 1}e}".replace("-", "\u2212")
    return fixed(number, max(0, digits - 1 - size))


def percent(value: object, digits: int = 2) -> str:
    """A fraction as a percentage: 0.5 -> 50.00 %."""
    number = finite(value)
    return UNKNOWN if number is None else fixed(100 * number, digits) + SPACE + "%"


def share(value: object) -> str:
    """A density as a percentage with three digits: 0.0625 -> 6.25 %, 0.5 -> 50.0 %."""
    number = finite(value)
    return UNKNOWN if number is None else significant(100 * number) + SPACE + "%"


def points(value: object) -> str:
    """A difference of fractions in percentage points, with its sign."""
    number = finite(value)
    return UNKNOWN if number is None else fixed(100 * number, 2, signed=True)


def times(value: object) -> str:
    """A ratio: 0.68 x."""
    number = finite(value)
    return UNKNOWN if number is None else fixed(number, 2) + SPACE + "×"


def count(value: object) -> str:
    """An integer with separated thousands."""
    return fixed(value, 0)


def duration(seconds: object) -> str:
    """Seconds as 8.2 s, 4 min 32 s or 1 h 12 min."""
    number = finite(seconds)
    if number is None or number < 0:
        return UNKNOWN
    if number < 59.95:
        return f"{number:.1f}{SPACE}s"
    whole = round(number)
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60}{SPACE}s"
    minutes = round(number / 60)
    return f"{minutes // 60:,}{SPACE}h {minutes % 60}{SPACE}min"
