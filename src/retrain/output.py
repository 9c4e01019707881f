"""What leaves for the terminal: what a screen cannot take ends no program.

A character that the encoding lacks is written as an escape. What cannot be written, because the
reader has gone, the terminal was closed or the disk is full, is dropped.
"""

from __future__ import annotations

import io
import os
import select
import sys

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_NEUTRAL = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *_BIDI, 0x2028, 0x2029, *range(0xD800, 0xE000)], 0xFFFD),
}


def visible(text: str) -> str:
    """Text of the same length in which control characters are pictures of themselves.

    Models and servers write escape sequences, which a terminal would obey, and marks that turn text
    around. Line ends and tabs stay.
    """
    return text.translate(_NEUTRAL)


def complain(text: str) -> None:
    """Say it on the standard error."""
    print(visible(text), file=sys.stderr)


class _Screen(io.FileIO):
    """A standard stream that drops what it cannot take. `lost`: why, the first time."""

    lost: OSError | None = None

    def write(self, data: object) -> int:
        try:
            # A stream that another program has made non-blocking takes nothing while it is full.
            while (taken := super().write(data)) is None:  # type: ignore[arg-type]
                select.select([], [self], [])
            return taken
        except OSError as error:
            self.lost = self.lost or error
            return memoryview(data).nbytes  # type: ignore[arg-type]


def guard_output() -> None:
    """Have the standard output and the standard error take everything, as the module says.

    Only the process's own: a stream that was put in their place is left as it is.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # Else the next files that are opened would get the numbers of what was closed.
        while (free := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(free)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None and not _is_own(stream, number):
            continue
        at_once = stream is not None and (stream.line_buffering or stream.write_through)
        screen = io.TextIOWrapper(
            io.BufferedWriter(_Screen(number, "w", closefd=False)),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=at_once,
        )
        setattr(sys, name, screen)


def lost_output() -> OSError | None:
    """Why the standard output has not taken everything, None when it has."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Screen) else None


def _is_own(stream: object, number: int) -> bool:
    if not isinstance(stream, io.TextIOWrapper):
        return False
    # Without a buffer where PYTHONUNBUFFERED is set.
    raw = getattr(stream.buffer, "raw", stream.buffer)
    return isinstance(raw, io.FileIO) and not isinstance(raw, _Screen) and raw.fileno() == number
