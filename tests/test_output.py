"""What leaves for the terminal: real pipes, files and pseudo-terminals that cannot take it."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from retrain.terminal import Terminal

PROGRAM = """
    import json, sys, time
    from pathlib import Path
    from retrain.entry import leave
    from retrain.output import complain
    from retrain.terminal import Terminal

    def program(arguments, prog_name):
        mark, wait = Path(arguments[0]), Path(arguments[1])
        console = Terminal()
        console.print("a reward of é, → and \\U0001f600", "\\udcff" + "x" * 9000)
        complain("warning: é → \\udcff")
        mark.with_suffix(".began").touch()
        while str(wait) != "." and not wait.exists():
            time.sleep(0.01)
        for _ in range(3):
            console.print("the next → line")
            print("another", flush=True)
        if arguments[2:] == ["--json"]:
            print(json.dumps({"a": 1}))
        mark.write_text("trained")

    leave(program, sys.argv[1:], "program")
"""


def started(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, arguments)], **options
    )


@pytest.mark.parametrize(
    ("encoding", "unbuffered"), [("ascii", ""), ("iso-8859-1", "1"), ("utf-8", "")]
)
def test_what_an_encoding_lacks_is_an_escape(
    tmp_path: Path, encoding: str, unbuffered: str
) -> None:
    variables = {"PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": unbuffered}
    process = started(
        *(tmp_path / "mark", "."),
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, complaint = (out.decode(encoding) for out in process.communicate(timeout=60))
    assert process.returncode == 0, complaint
    assert (tmp_path / "mark").read_text() == "trained"
    lacks = encoding != "utf-8"
    assert ("the next \\u2192 line" if lacks else "the next → line") in said
    assert ("\\xe9" in said) == (encoding == "ascii")
    assert "warning: " in complaint
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    ("redirected", "document", "code", "complaint"),
    [
        (">/dev/full", "", 0, "could be written to the standard output: No space left"),
        (">/dev/full", "--json", 1, "could be written to the standard output: No space left"),
        (">/dev/full 2>&1", "", 0, ""),
        (">&- 2>&-", "", 0, ""),
        ("2>&1 | head -c 10", "", 0, ""),
    ],
)
def test_output_that_fails_ends_nothing(
    tmp_path: Path, redirected: str, document: str, code: int, complaint: str
) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = f"{sys.executable} program.py mark . {document} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    # With closed descriptors, the file is not taken for the standard output.
    assert (tmp_path / "mark").read_text() == "trained"
    assert complaint in done.stderr


def test_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    process = started(
        *(tmp_path / "mark", tmp_path / "closed"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    while not (tmp_path / "mark.began").exists():
        if select.select([master], [], [], 0.05)[0]:
            os.read(master, 65536)
    os.close(master)
    (tmp_path / "closed").touch()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "mark").read_text() == "trained"


ATTACK = "404 \x1b[2J\x1b]0;title\x07\x9b1m\x7f\u202e done\r\n"


@pytest.mark.parametrize("kind", ["text", "string", "cell", "styled"])
def test_a_terminal_obeys_nothing_that_it_is_told_to_show(kind: str) -> None:
    table = Table()
    table.add_column(ATTACK)
    table.add_row(Text(ATTACK))
    table.add_row(ATTACK)
    shown = {
        "text": Text(ATTACK),
        "string": ATTACK,
        "cell": table,
        "styled": Text.assemble("a ", (ATTACK, "red")),
    }[kind]
    output = io.StringIO()
    console = Terminal(file=output, width=120, force_terminal=True, color_system=None)
    console.print(shown, markup=False)
    assert not set("\x1b\x07\x9b\x7f\u202e") & set(output.getvalue())
    assert "404 ␛[2J␛]0;title" in output.getvalue()


def test_styles_stay_in_their_places() -> None:
    output = io.StringIO()
    console = Terminal(file=output, force_terminal=True, color_system="standard", width=80)
    console.print(Text.assemble("\x1b", ("red", "red"), "\x1b"))
    assert output.getvalue() == "␛\x1b[31mred\x1b[0m␛\n"
