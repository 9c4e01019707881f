"""A process that compares mathematical answers; started as a script, by `math_pool`.

    python -P math_process.py MEMORY_BYTES

Reads one JSON object a line, {"reference": …, "answer": …, "seconds": CPU time that it may take},
both as `math_text.plain` writes them, and writes one for each, {"outcome": "correct" | "wrong" |
"unverifiable", "reason": …, "cpu": CPU seconds, or null when the check was ended}. The first line
that it writes says that it is ready, or why it cannot be. It ends with its input. It loads the
libraries once and checks in a fork of itself: when a check is ended, the next fork is there in
milliseconds.

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
import os
import re
import resource
import signal
import sys
import time
from functools import lru_cache
from typing import Any

from retrain.rewards.math_size import MOST_DIGITS, UnreadableError, check_shape, check_size

CHECKS_A_FORK = 5000
"""sympy's caches grow; a fork is replaced before they fill its memory."""

_NUMBER = re.compile(
    r"(?P<whole>-?[0-9]+)/(?P<over>[0-9]+)|-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"
)
_COMMANDS = re.compile(r"\\(?:text|math[a-z]+|operatorname|begin|end)\{[^{}]*\}|\\[A-Za-z]+|I")
_TRIGONOMETRY = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREE = r"^\circ"
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
    (r"\sin 30^\circ", "0.5", "correct"),
    ("R+r", "2r", "wrong"),
    ("10^{-8}", "0.0", "wrong"),
)
"""(reference, answer, outcome): tried at the start, to load what is imported late, and because
another version of the libraries that answers them otherwise must not judge."""

_refused: list[str] = []
"""What the running check was not allowed to do; libraries may keep quiet about it."""


def main() -> None:
    """Serve until the input ends."""
    memory = int(sys.argv[1])
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
    except Exception as error:
        say(failed=f"{type(error).__name__}: {error}")
        return
    is_first = True
    while True:
        if (fork := os.fork()) == 0:
            _leave_with_the_parent()
            sys.addaudithook(_refuse)
            if not is_first or _is_ready(compare, say):
                _serve(compare, say)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        if code == 0:
            return
        is_first = False
        if code != _FULL:
            reason = {-signal.SIGPROF: "time", _NO_MEMORY: "memory"}.get(code, "crash")
            say(outcome="unverifiable", reason=reason, cpu=None)


_FULL, _NO_MEMORY = 3, 4
"""Exit codes of a fork after which another one goes on."""


def _is_ready(compare: Any, say: Any) -> bool:
    """Whether the samples are judged as they must be, now that little is allowed."""
    try:
        for reference, answer, expected in _SAMPLES:
            if (found := compare(reference, answer)) != (expected, ""):
                raise RuntimeError(f"{reference} and {answer} are {found}, not {expected}")
    except Exception as error:
        say(failed=f"{type(error).__name__}: {error}")
        return False
    say(ready=True)
    return True


def _serve(compare: Any, say: Any) -> None:
    for count, line in enumerate(sys.stdin, start=1):
        asked = json.loads(line)
        _refused.clear()
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        try:
            outcome, reason = compare(asked["reference"], asked["answer"])
        except MemoryError:
            os._exit(_NO_MEMORY)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if outcome == "wrong" and _refused:
            outcome, reason = "unverifiable", f"refused: {_refused[0]}"
        say(outcome=outcome, reason=reason, cpu=time.process_time() - started)
        if count == CHECKS_A_FORK:
            os._exit(_FULL)


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
    """The comparison of two texts that went through `math_text.plain`, with its libraries."""
    import logging
    import warnings

    sys.dont_write_bytecode = True
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    import sympy
    import sympy.physics.units  # `simplify` imports it late, and it reads names with `parse_expr`
    from latex2sympy2_extended import latex2sympy, latex2sympy2, symbols
    from math_verify import grader
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
    sys.set_int_max_str_digits(4 * MOST_DIGITS)

    # R and r, and gamma and Gamma, are different variables; i is a number where it is no index.
    settings = latex2sympy2.ConversionConfig(lowercase_symbols=False)
    symbols.sympy_singleton_map.clear()
    symbols.sympy_singleton_map["pi"] = sympy.pi
    symbol_of = symbols.get_symbol
    indexed = False

    def get_symbol(name: str, is_real: Any = None, lowercase: bool = False) -> Any:
        if name == "i" and not indexed:
            return sympy.I
        return symbol_of(name, is_real, lowercase)

    latex2sympy2.get_symbol = get_symbol

    def same_number(one: Any, other: Any, *_: Any) -> bool:
        return _same_number(one, other, sympy)

    def same_symbol(one: Any, other: Any) -> bool:
        return same_number(one, other) or grader.sympy_symbolic_eq(one, other)

    # Their own round to six decimals, chop what is below 1e-15, and pair names by letters.
    grader.sympy_numeric_eq = same_number
    grader.sympy_compare_symbols = same_symbol

    def to_sympy(text: str, context: tuple[bool, bool]) -> Any:
        is_complex, degrees = context
        return latex2sympy(
            text,
            is_real=None if is_complex else True,
            convert_degrees=degrees,
            normalization_config=None,
            conversion_config=settings,
        )

    def read(text: str, context: tuple[bool, bool]) -> Any:
        """One answer that is known to be one: whole, or not at all.

        context: whether variables may be complex, and whether degrees are so many radians.
        """
        check_shape(text)
        # The letter I is a number to the parser, and a variable to those who write it.
        text = _COMMANDS.sub(lambda found: "\\text{I}" if found[0] == "I" else found[0], text)
        try:
            found = to_sympy(text, context)
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
                found = to_sympy(parts[-1], context)
            except Exception:
                raise UnreadableError("text") from None
        if not isinstance(found, sympy.Basic | sympy.MatrixBase):
            raise UnreadableError("text")
        check_size(found, sympy)
        return found

    @lru_cache(maxsize=256)
    def read_reference(text: str, context: tuple[bool, bool], indexed: bool) -> Any:
        del indexed
        try:
            return read(text, context)
        except UnreadableError:
            return None

    def compare(reference: str, answer: str) -> tuple[str, str]:
        nonlocal indexed
        both = f"{reference} {answer}"
        indexed = bool(re.search(r"\\(?:sum|prod)(?![a-z])", both))
        is_complex = grader.should_treat_as_complex(both)
        turned = bool(_TRIGONOMETRY.search(both)) or (
            (_DEGREE in reference) != (_DEGREE in answer) and "\\pi" in both
        )
        context = (is_complex, turned)
        gold = read_reference(reference, context, indexed)
        if gold is None:
            return "unverifiable", "reference"
        try:
            found = read(answer, context)
        except UnreadableError as error:
            return "unverifiable", f"answer: {error}"
        try:
            same = grader.verify(
                gold,
                found,
                allow_set_relation_comp=True,
                timeout_seconds=None,
                raise_on_error=True,
            )
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


def _same_number(one: Any, other: Any, sympy: Any) -> bool:
    """Whether two expressions have the same value, or as decimals agree to six digits.

    Where a decimal is written, to within half a unit of the sixth digit, and of the sixth place
    after the point; otherwise exactly, as far as 25 digits tell. Nothing equals zero but zero.
    """
    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase):
        return one.shape == other.shape and all(
            _same_number(a, b, sympy) for a, b in zip(one.flat(), other.flat(), strict=True)
        )
    percent = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    shares = [e for e in (one, other) if isinstance(e, sympy.Mul) and percent in e.args]
    if len(shares) == 1:
        # 50% is 0.5, and what "how many percent" asks for.
        bare = sympy.Mul(*(factor for factor in shares[0].args if factor != percent))
        whole = other if shares[0] is one else one
        if _same_number(bare, whole, sympy):
            return True
    try:
        one, other = one.doit(), other.doit()
        if not (one.is_number and other.is_number):
            exact = [sympy.nsimplify(part, rational=True) for part in (one, other)]
            return bool(exact[0] == exact[1] or exact[0] - exact[1] == 0)
        if one.is_infinite or other.is_infinite or (one.is_Rational and other.is_Rational):
            return bool(one == other)
        values = [_value(number, sympy) for number in (one, other)]
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return False
    size = max(sympy.Abs(value).evalf(30) for value in values)
    gap = sympy.Abs(values[0] - values[1]).evalf(30)
    if one.has(sympy.Float) or other.has(sympy.Float):
        return bool(gap <= max(min(5e-7, 5e-6 * size), 1e-14 * size))
    return bool(gap <= sympy.Float("1e-25", 30) * size)


def _value(number: Any, sympy: Any) -> Any:
    """30 digits; what cancels to all the digits that sympy tries is zero."""
    parts = number.evalf(30).as_real_imag()
    real, imaginary = (0 if part.is_Float and part._prec == 1 else part for part in parts)
    return real + sympy.I * imaginary


if __name__ == "__main__":
    main()
