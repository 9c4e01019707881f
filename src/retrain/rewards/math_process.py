"""A process that compares mathematical answers; started as a script, by `math_pool`.

    python -P math_process.py CPU_SECONDS MEMORY_BYTES

Reads one JSON object a line, {"reference": …, "answer": …}, and writes one for each,
{"outcome": "correct" | "wrong" | "unverifiable", "reason": …}. The first line that it writes says
that it is ready, or why it cannot be. It ends with its input.

What it reads was written by a model that is paid for good answers, so nothing is left to good
will. sympy makes Python source of parts of an expression in places (`lambdify`, `parse_expr`),
and the names in it are the model's. So that is switched off, and a hook that cannot be taken out
again refuses to compile code, open files for writing, start programs or touch the network. CPU
time, memory and the size of files are limited by the kernel; a check that takes longer than its
CPU time ends the process. CPU time and not time, so that the same answer has the same outcome
however busy the machine is. `PYTHONHASHSEED` is fixed by who starts it, for the same reason.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

LONGEST = 2000
"""Characters of an answer or a reference; longer ones are not read."""
DEEPEST = 60
"""Braces and brackets inside each other."""
MOST_DIGITS = 5000
"""Digits of a number that is computed."""

_NUMBER = re.compile(
    r"(?P<whole>-?[0-9]+)/(?P<over>[0-9]+)|-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"
)
_DENIED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "tempfile.", "urllib.")
_ALLOWED = frozenset({"os.listdir", "os.scandir", "os.walk", "os.fwalk"})
# Builds functions out of numbers alone: how many variables a polynomial has.
_MAY_COMPILE = (os.path.join("sympy", "polys", "monomials.py"),)  # noqa: PTH118
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_SAMPLES = (
    (r"\frac{1}{2}", "0.5", "correct"),
    ("x^2+2x+1", "(x+1)^2", "correct"),
    (r"\sqrt{8}", r"2\sqrt{2}+1", "wrong"),
    ("x<3", r"(-\infty,3)", "correct"),
    (r"\{1,2\}", "2, 1", "correct"),
    ("2x+3y=6", "3y=6-2x", "correct"),
    (r"\begin{pmatrix}1\\x\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "wrong"),
    (r"\sin^2 x", r"1-\cos^2 x", "correct"),
)
"""(reference, answer, outcome): tried at the start, to load what is imported late, and because
another version of the libraries that answers them otherwise must not judge."""

_refused: list[str] = []
"""What the running check was not allowed to do; libraries may keep quiet about it."""


class UnreadableError(Exception):
    """The text is no mathematics that can be read; the message is the reason."""


def main() -> None:
    """Serve until the input ends."""
    cpu_seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    _leave_with_the_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Nothing that a library prints may be taken for an answer.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def say(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        compare = _load()
        for reference, answer, _ in _SAMPLES:
            compare(reference, answer)  # what sympy imports late
        _limit(memory)
        sys.addaudithook(_refuse)
        for reference, answer, expected in _SAMPLES:
            if (found := compare(reference, answer)) != (expected, ""):
                raise RuntimeError(f"{reference} and {answer} are {found}, not {expected}")
    except Exception as error:
        say(failed=f"{type(error).__name__}: {error}")
        return
    say(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        _refused.clear()
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            outcome, reason = compare(asked["reference"], asked["answer"])
        except MemoryError:
            say(outcome="unverifiable", reason="memory", last=True)
            return
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if outcome == "wrong" and _refused:
            outcome, reason = "unverifiable", f"refused: {_refused[0]}"
        say(outcome=outcome, reason=reason)


def _leave_with_the_parent() -> None:
    # What a terminal or a batch system sends to every process is the trainer's business. The
    # default action of SIGPROF ends the process at once, also inside one long multiplication.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))


def _limit(memory: int) -> None:
    """`memory`: bytes, besides what the libraries took."""
    used = 0
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook; see sys.addaudithook."""
    if event == "compile":
        refused = str(arguments[1]).startswith("<") and not _is_trusted(sys._getframe(1))
    elif event == "exec":
        refused = arguments[0].co_filename.startswith("<") and not _is_trusted(sys._getframe(1))
    elif event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        refused = bool(writes) or (isinstance(flags, int) and bool(flags & _WRITING))
    else:
        refused = event.startswith(_DENIED) and event not in _ALLOWED
    if refused:
        _refused.append(event)
        raise PermissionError(f"{event} is not for a process that checks answers")


def _is_trusted(frame: Any) -> bool:
    """Whether code is made by an import (of named tuples, say) or by a module that may."""
    if frame.f_code.co_filename.endswith(_MAY_COMPILE):
        return True
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _load() -> Any:
    """The comparison, with the libraries that it needs."""
    import logging
    import warnings

    sys.dont_write_bytecode = True
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    import sympy
    import sympy.physics.units  # `simplify` imports it late, and it reads names with `parse_expr`
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex, verify
    from sympy import utilities
    from sympy.core import evalf
    from sympy.parsing import sympy_parser

    def none_made(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("no code is made out of answers")

    # The modules, not the function that the package has under the same name.
    for module in (sys.modules["sympy.utilities.lambdify"], evalf, utilities):
        if hasattr(module, "lambdify"):
            setattr(module, "lambdify", none_made)  # noqa: B010
    # sympy reads even "5" by evaluating it as Python: here a number is all that is read.
    sympy_parser.eval_expr = none_made
    sympy_parser.parse_expr = number_of

    settings = NormalizationConfig(
        basic_latex=True,
        units=True,
        malformed_operators=True,
        nits=True,
        boxed="none",
        equations=False,
    )

    def to_sympy(text: str) -> Any:
        return latex2sympy(
            text,
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
        )

    def read(text: str) -> Any:
        """`math_verify.parse` of one answer that is known to be one: whole, or not at all."""
        check_shape(text)
        # Runs of spaces cost some of its patterns quadratic time.
        text = normalize_latex(" ".join(text.split()), settings)
        try:
            found = to_sympy(text)
        except RecursionError:
            raise UnreadableError("depth") from None
        except MemoryError:
            raise
        except Exception:
            # a = b = c: math_verify takes the last.
            parts = [part.strip() for part in text.split("=")]
            if len(parts) < 3 or set(text) & set(",;<>!"):
                raise UnreadableError("text") from None
            try:
                found = to_sympy(parts[-1])
            except Exception:
                raise UnreadableError("text") from None
        if not isinstance(found, sympy.Basic | sympy.MatrixBase):
            raise UnreadableError("text")
        check_size(found, sympy)
        return found

    @lru_cache(maxsize=256)
    def read_reference(text: str) -> Any:
        try:
            return read(text)
        except UnreadableError:
            return None

    def compare(reference: str, answer: str) -> tuple[str, str]:
        gold = read_reference(reference)
        if gold is None:
            return "unverifiable", "reference"
        try:
            found = read(answer)
        except UnreadableError as error:
            return "unverifiable", f"answer: {error}"
        try:
            same = verify(gold, found, timeout_seconds=None, raise_on_error=True)
        except RecursionError:
            return "unverifiable", "depth"
        except MemoryError:
            raise
        except Exception as error:
            return "unverifiable", f"error: {type(error).__name__}"
        return ("correct" if same else "wrong"), ""

    return compare


def number_of(text: str, *_: Any, **__: Any) -> Any:
    """A sympy number from plain digits; for sympy's `parse_expr`, which evaluates Python."""
    import sympy

    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise SyntaxError("not a number")
    if found["over"]:
        return sympy.Rational(int(found["whole"]), int(found["over"]))
    return sympy.Integer(text) if text.strip().isdigit() else sympy.Float(text)


def check_shape(text: str) -> None:
    """Raises UnreadableError for a text that no parser needs to see."""
    if len(text) > LONGEST:
        raise UnreadableError("length")
    if not text.strip() or (not text.isascii() and any(_odd(character) for character in text)):
        raise UnreadableError("text")
    depth = 0
    for character in text:
        if character in "{[(":
            depth += 1
            if depth > DEEPEST:
                raise UnreadableError("depth")
        elif character in "}])":
            depth -= 1
    if max((text.count(sign) for sign in "^!"), default=0) > DEEPEST:
        raise UnreadableError("depth")


def _odd(character: str) -> bool:
    """Digits of other scripts, which int() would read, and halves of characters."""
    return character.isdigit() or "\ud800" <= character <= "\udfff"


def check_size(expression: Any, sympy: Any) -> None:
    """Raises UnreadableError when computing the expression would make an enormous number."""

    def digits(node: Any) -> float:
        """An upper bound of log10 of the value's size, or of its inverse's, if it is a number."""
        if isinstance(node, sympy.Rational):
            return max(len(str(bin(abs(int(node.p))))), len(str(bin(int(node.q))))) * 0.302
        if isinstance(node, sympy.Float):
            exponent = abs(float(sympy.log(abs(node), 10))) if node else 0.0
            return 1.0 + exponent if math.isfinite(exponent) else math.inf
        below = [digits(argument) for argument in getattr(node, "args", ())]
        if isinstance(node, sympy.Pow):
            power = 10.0 ** below[1] if below[1] < 15 else math.inf
            found = max(below[0], 0.302) * power if node.exp.is_number else max(below)
            if not node.base.is_number:
                # Nobody expands (x + 1)^1000000 and lives.
                found = power if node.exp.is_number else found
        elif isinstance(node, sympy.factorial):
            found = 10.0 ** below[0] * max(below[0], 1.0) if below[0] < 15 else math.inf
            found = found if node.args[0].is_number else below[0]
        else:
            found = sum(below)
        if found > MOST_DIGITS:
            raise UnreadableError("size")
        return found

    try:
        digits(expression)
    except RecursionError:
        raise UnreadableError("depth") from None


if __name__ == "__main__":
    main()
