"""The program as its users meet it: real processes, exit codes, what is printed where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from retrain import __version__, catalogue, cli, doctor, options
from retrain import campaign as front_door
from retrain.errors import ConfigError, InputError

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "pydantic", "numpy", "rich", "scipy")
RUN = """
[training]
max_tokens = 32
max_steps = 1
batch_size = 2
group_size = 2
[evaluation]
num_problems = 0
[algorithm]
advantage_mode = "grpo"
transform_mode = "none"
"""


def retrain(
    *arguments: str, cwd: Path, module: str = "retrain", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def in_python(code: str, cwd: Path) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom retrain.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as leave: assert leave.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert in_python(code, tmp_path).splitlines()[-1] == "[]"


def test_importing_retrain_is_light(tmp_path: Path) -> None:
    code = f"import sys, retrain\nprint([name for name in {HEAVY} if name in sys.modules])"
    assert in_python(code, tmp_path).strip() == "[]"
    code = "import retrain\nprint(retrain.load_config.__name__, retrain.__version__, dir(retrain))"
    assert f"load_config {__version__}" in in_python(code, tmp_path)


def test_explain_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom retrain.cli import main\n"
        f"try: main(['explain', {str(ROOT / 'campaigns' / 'quickstart.toml')!r}])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    assert in_python(code, tmp_path).splitlines()[-1] == "[]"


def test_the_module_is_the_program(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("retrain")
    for arguments in (["--help"], ["--version"], ["explain", "--help"], ["run", "missing.toml"]):
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        module = retrain(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (
            module.returncode,
            module.stdout,
            module.stderr,
        )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--version"], 0, f"retrain {__version__}"),
        ([], 2, "retrain.toml: no such file here"),
        (["missing.toml"], 2, "missing.toml: no such file"),
        (["statsu"], 2, "no such file, and no such verb; did you mean status?"),
        (["x.toml", "--lr", "fast"], 2, "Invalid value for '--lr'"),
        (["x.toml", "--lrr", "1"], 2, "No such option: --lrr"),
        (["x.toml", "--seeds", "a,b"], 2, "write whole numbers with commas between"),
        (["x.toml", "--seeds", "1,2"], 2, "add a [campaign] table"),
        (["x.toml", "--set", "lr=1"], 2, "write it as table.key=value"),
        (["x.toml", "--set", "training.lrr=1"], 2, "did you mean lr?"),
        (["--lr", "5", "x.toml"], 2, "--lr: training.lr: 5 cannot be meant"),
        (["explain", "x.toml", "--max-tokens", "999"], 2, "--max-tokens: training.max_tokens: 999"),
        (["campaign.toml", "--run-dir", "x"], 2, "--run-dir is for a single run"),
        (["campaign.toml", "--seed", "3"], 2, "use --seeds 3"),
        (["status", "missing"], 2, "no such file or folder: missing"),
        (["report", "missing"], 2, "missing: no such folder"),
        (["diff", "missing", "other"], 2, "missing: no such folder"),
        (["samples", "missing"], 2, "missing: no such folder"),
        (["init", "quikstart"], 2, "did you mean quickstart?"),
        (["plugins", "missing.toml"], 2, "no such file"),
    ],
)
def test_exit_codes_and_messages(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "x.toml").write_text(RUN)
    (tmp_path / "campaign.toml").write_text(RUN + "[campaign]\n")
    done = retrain(*arguments, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in (done.stdout if code == 0 else done.stderr)
    assert not (tmp_path / "logs").exists()


def test_a_run_and_the_same_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "retrain.toml").write_text(RUN + "[gtpo]\nbeta = 0.5\n")
    done = retrain("--run-dir", "out", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: gtpo.beta: is written, but nothing reads it" in done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["seed"] == 3
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leave:
        cli.main(["run", "out/config.toml", "--run-dir", "b", "--name", "n", "--condition", "c"])
    assert leave.value.code == 0
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as leave:
        cli.main(["score", "out", "--type", "match", "--json"])
    assert leave.value.code == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    logged = (tmp_path / "out" / "emergence" / "generations.jsonl").read_text().splitlines()
    assert [row["outcome"] for row in rows] == [json.loads(line)["outcome"] for line in logged]
    again = json.loads((tmp_path / "b" / "run.json").read_text())
    assert (again["condition"], again["name"], again["seed"]) == ("c", "n", 3)


def fails(error: BaseException) -> Any:
    def verb(*_: object, **__: object) -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "logs"), 1, "error: [Errno 13]"),
        (ZeroDivisionError("oh"), 1, "this is a bug in retrain"),
    ],
)
def test_what_a_verb_raises(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(cli, "_load", fails(error))
    with pytest.raises(SystemExit) as leave:
        cli.main(["run", "x.toml"])
    assert leave.value.code == code
    shown = capsys.readouterr().err
    assert message in shown
    assert ("Traceback" in shown) == isinstance(error, ZeroDivisionError)


def test_options_become_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def load(*arguments: Any, begun: bool = False) -> Any:
        seen.extend(arguments)
        raise InputError("enough")

    monkeypatch.setattr(cli, "_load", load)
    values = {int: "3", float: "0.5", str: "x"}
    flags = [
        part for flag, (*_, kind, _) in options.SHORTHANDS.items() for part in (flag, values[kind])
    ]
    with pytest.raises(SystemExit):
        cli.main(["x.toml", *flags, "--set", "loss.type=ppo", "--seeds", "1"])
    path, overrides, seeds = seen
    assert (path, seeds) == (Path("x.toml"), "1")
    assert [(o.table, o.key, o.source) for o in overrides] == [
        ("loss", "type", "--set"),
        *((table, key, flag) for flag, (table, key, *_) in options.SHORTHANDS.items()),
    ]
    assert [o.value for o in overrides[1:]] == [
        kind(values[kind]) for *_, kind, _ in options.SHORTHANDS.values()
    ]


def test_shorthands_are_keys() -> None:
    from retrain.config.messages import TABLES

    for table, key, *_ in options.SHORTHANDS.values():
        assert key in TABLES[table].model_fields


def test_init_then_explain(tmp_path: Path) -> None:
    assert retrain("init", "campaign", cwd=tmp_path).returncode == 0
    assert "exists and is left as it is" in retrain("init", cwd=tmp_path).stderr
    done = retrain("explain", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["capacity"]["total_runs"] == 9
    assert "experiment" in retrain("init", "--list", cwd=tmp_path).stdout
    shown = retrain("explain", "--seeds", "1,2", cwd=tmp_path).stdout
    assert "3 conditions x 2 seeds = 6 runs" in shown


def test_plugins_lists_what_a_config_could_name(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[plugins]\nsearch_paths = ["more"]\n')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rewards.py").write_text("def score(response, reference):\n    ...\n")
    (tmp_path / "mine.py").write_text(
        'raise SystemExit\ndef mode(rewards):\n    """Best of all."""\ndef _hidden():\n    ...\n'
    )
    (tmp_path / "torn.py").write_text("def (")
    found = catalogue.catalogue(tmp_path / "x.toml")
    assert found["found"]["mine.mode"] == "Best of all."
    assert found["found"]["rewards.score"] == "(response, reference)"
    assert found["found"]["torn"].startswith("cannot be read")
    assert set(found["advantage_mode"]) == {"grpo", "maxrl"}
    assert all(line for kind in found.values() for line in kind.values())
    shown = retrain("plugins", "x.toml", cwd=tmp_path)
    assert "mine.mode" in shown.stdout
    assert json.loads(retrain("plugins", "x.toml", "--json", cwd=tmp_path).stdout) == found


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    examination = doctor.examine()
    assert examination["ok"], examination["problems"]
    assert examination["packages"]["torch"]
    assert examination["embedded_model"]["context"] == 256
    assert all(extra["gives"] for extra in examination["extras"].values())
    doctor.render(examination)
    assert "embedded model" in capsys.readouterr().out
    assert json.loads(json.dumps(examination)) == examination


def test_doctor_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "scipy" else "1")
    monkeypatch.setattr(doctor, "_torch", lambda: {"error": "OSError: libc"})
    examination = doctor.examine()
    assert not examination["ok"]
    doctor.render(examination)
    shown = capsys.readouterr().out
    assert "problem: scipy is not installed; run: pip install scipy" in shown
    assert "torch cannot be imported: OSError: libc" in shown


def sections() -> Mapping[str, str]:
    _, *parts = re.split(r"^## ", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    named = (part.partition("\n") for part in parts)
    return {title.strip("`").removeprefix("retrain "): text for title, _, text in named}


VERBS = (
    *("run", "resume", "resume-check", "squeeze", "explain", "status", "report", "plugins"),
    *("diff", "export", "samples", "sync", "init", "doctor", "python -m retrain.campaign"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_about_the_command_line_is_true(verb: str, tmp_path: Path) -> None:
    words = [verb] if " " not in verb else []
    module = "retrain" if words else verb.split()[-1]
    shown = retrain(*words, "-h", cwd=tmp_path, module=module).stdout
    offered = set(re.findall(r"^  (--[\w-]+)", shown, re.MULTILINE))
    described = set(re.findall(r"(--[a-z][a-z-]*)", sections()[verb]))
    if verb == "explain":
        # Named there only as the one option of run that explain does not take.
        described = (described | {*options.SHORTHANDS, "--set", "--seeds"}) - {"--run-dir"}
    if verb == "resume":
        others = {"--seeds", "--run-dir", "--resume"}
        described = (described | {*options.SHORTHANDS, "--set"}) - others
    assert described == offered


def test_examples_on_the_page_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the page is one that the program takes."""
    import shlex

    page = (ROOT / "docs" / "cli.md").read_text()
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(lines) > 10
    for line in lines:
        program, *arguments = shlex.split(line)
        main = cli.main
        if program == "python":
            assert arguments[:2] == ["-m", "retrain.campaign"]
            main, arguments = front_door.main, arguments[2:]
        else:
            assert program == "retrain"
        with pytest.raises(SystemExit) as leave:
            main([*arguments, "--help"])
        assert leave.value.code == 0, line


class TestPython:
    """`retrain.train` and its like."""

    def test_train(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import retrain as package

        monkeypatch.chdir(tmp_path)
        (tmp_path / "x.toml").write_text(RUN)
        result = package.train("x.toml", run_dir="out", overrides={"training.seed": 5})
        assert (result.status, result.run_dir) == ("done", Path("out"))
        assert json.loads((tmp_path / "out" / "run.json").read_text())["seed"] == 5

    def test_going_on_is_asked_for_by_name(self, tmp_path: Path) -> None:
        """A key that says to go on is not ignored by a function that starts something."""
        import retrain as package

        (tmp_path / "run.json").write_text("{}")
        training = {"max_tokens": 9, "max_steps": 900}
        tables: dict[str, Any] = {"resume": {"from": str(tmp_path)}, "training": training}
        for start in (package.train, package.run_campaign):
            with pytest.raises(ConfigError, match=r"resume.from: .*call retrain.resume\("):
                start({**tables, **({"campaign": {}} if start is package.run_campaign else {})})

    def test_load_config(self, tmp_path: Path) -> None:
        import retrain as package

        tables: dict[str, Any] = {"training": {"max_tokens": 64}, "gtpo": {"beta": 2.0}}
        with pytest.warns(UserWarning, match=r"gtpo.beta: 2 is above 1"):
            loaded = package.load_config(tables, {"sepa.steps": 100}, None)
        assert loaded.config.sepa.steps == 100
        with pytest.raises(ConfigError, match="did you mean lr"):
            package.load_config(tables, {"training.lrr": 1})
        with pytest.raises(InputError, match=r"table\.key"):
            package.load_config(tables, {"lr": 1})
        with pytest.raises(InputError, match="final"):
            package.load_config(loaded, {"training.lr": 1e-4})

    def test_unknown_names(self) -> None:
        import retrain as package

        with pytest.raises(AttributeError, match="no attribute 'trian'"):
            package.trian  # noqa: B018
