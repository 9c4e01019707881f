"""Numbers as people read them."""

from __future__ import annotations

from dataclasses import dataclass

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


@dataclass(frozen=True, slots=True)
class Unit:
    """How values and differences of them are written."""

    scale: float = 100.0
    """What a value is multiplied by: 100 turns a share into points."""
    name: str = "points"
    digits: int = 1

    def plain(self, value: float | None, missing: str = "-") -> str:
        return missing if value is None else f"{self.scale * value:.{self.digits}f}"

    def signed(self, value: float) -> str:
        # Adding 0 turns -0.0 into 0.0, whose sign says nothing.
        return f"{round(self.scale * value, self.digits) + 0.0:+.{self.digits}f}"

    def size(self, value: float) -> str:
        number = f"{self.scale * value:.6g}"
        name = self.name.removesuffix("s") if number == "1" else self.name
        return f"{number} {name}".rstrip()


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s"
    seconds = round(seconds)
    if seconds < MINUTE:
        return f"{seconds} s"
    if seconds < HOUR:
        return _two(seconds, MINUTE, "min", 1.0, "s")
    if seconds < DAY:
        return _two(seconds, HOUR, "h", MINUTE, "min")
    return _two(seconds, DAY, "d", HOUR, "h")


def age(seconds: float) -> str:
    """`3 s`, `12 min`, `5 h`, `9 d`: the largest unit alone."""
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(share: float | None, missing: str = "") -> str:
    """`71.1%` of 0.711."""
    return missing if share is None else f"{100.0 * share:.1f}%"


def _two(seconds: float, large: float, large_name: str, small: float, small_name: str) -> str:
    whole, rest = divmod(round(seconds / small), round(large / small))
    return f"{whole} {large_name}" + (f" {rest} {small_name}" if rest else "")
