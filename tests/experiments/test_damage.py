"""Damaged records of a campaign: a message and never a traceback, and nothing done is lost."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from campaigns import load, plain_console, set_trouble, snapshot
from fake_worker import fake_train

from retrain.analysis import report
from retrain.cli import main
from retrain.config.dump import read_run_config
from retrain.errors import InputError
from retrain.experiments.campaign import run_campaign
from retrain.experiments.conclusion import CampaignResult
from retrain.experiments.executors.executor import Event, Failed, Finished, Job
from retrain.experiments.resume import resume_campaign
from retrain.files import RunRecord, atomic_write_json, json_line, read_json, read_jsonl
from retrain.training.place import Place

DONE, OPEN = "runs/a_s1", "runs/b_s1"


class InProcess:
    """An executor whose worker is this very process, and pretends to train."""

    slots = 1

    def __init__(self, _folder: Path) -> None:
        self._jobs: list[Job] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        self._jobs += jobs

    def poll(self, timeout: float) -> list[Event]:
        job = self._jobs.pop(0)
        try:
            config = read_run_config(job.config)
            result = fake_train(
                config,
                job.run_dir,
                name=job.name,
                condition=job.condition,
                place=Place(config.backend),
                on_row=lambda row: None,
                stop=lambda: False,
            )
        except (ValueError, InputError) as error:
            return [Failed(job.name, "error", str(error))]
        return [Finished(job.name, result.status, result.message, result.measured())]

    def cancel(self, names: Collection[str]) -> list[Event]:
        return []

    def stop(self) -> list[Event]:
        return []

    def kill(self) -> None:
        pass

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Only the verb draws the report, which a resume would draw each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda folder: report.Report(folder, folder))
        yield


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, and two that were killed after two of four steps."""
    logs = tmp_path_factory.mktemp("damage")
    levels = {"levels": {"1": 0.5, "2": 0.6}}
    loaded = load(logs, {"a": levels, "b": {"trouble": "raise", **levels}}, every=2)
    console, _ = plain_console()
    folder = run_campaign(loaded, console=console, executor=InProcess).campaign_dir
    set_trouble(logs, {})
    manifest = read_json(folder / "manifest.json")
    for entry in manifest["runs"]:
        if entry["condition"] == "b":
            entry |= {"status": "running", "message": "", "cause": None}
            RunRecord.read(folder / "runs" / entry["name"]).update(status="stopped", message="")
            row = {"step": 0, "prompt": "1+1", "completion": "2", "reward": 1.0}
            emergence = folder / "runs" / entry["name"] / "emergence"
            emergence.mkdir(exist_ok=True)
            (emergence / "generations.jsonl").write_text(json_line(row) + "\n")
    atomic_write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def campaign(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / once.name))


def go_on(folder: Path, **options: Any) -> tuple[CampaignResult, str]:
    console, output = plain_console()
    result = resume_campaign(folder, console=console, executor=InProcess, **options)
    return result, output.getvalue()


def called(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize("damage", [b"", b'{"status": 5}', None])
@pytest.mark.parametrize("run", [DONE, OPEN])
def test_a_run_that_lost_its_record_gets_it_again(
    campaign: Path, run: str, damage: bytes | None
) -> None:
    path = campaign / run / "run.json"
    before, rows = read_json(path), snapshot(campaign / DONE)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert called("resume-check", campaign) == (0 if damage is None else 1)
    result, output = go_on(campaign)
    assert result.exit_code == 0
    assert {each.status for each in result.runs} == {"done"}
    what = "is missing" if damage is None else "it is kept as damaged_run.json"
    assert output.count(what) == 1
    if damage is not None:
        assert (path.parent / "damaged_run.json").read_bytes() == damage
    after = read_json(path)
    for key in ("name", "condition", "seed", "contents"):
        assert after[key] == before[key]
    # What was done is not done again.
    assert after["resumed_from"] == (None if run == DONE else 2)
    assert [row["step"] for row in read_jsonl(campaign / run / "metrics.jsonl")] == [*range(4)]
    kept = str(campaign / DONE / "metrics.jsonl")
    assert snapshot(campaign / DONE)[kept] == rows[kept]


@pytest.mark.parametrize("damage", [b"\xff", b"[training]\nlr = []"])
def test_a_config_of_a_finished_run_is_not_needed_and_another_run_waits_for_its(
    campaign: Path, damage: bytes
) -> None:
    (campaign / DONE / "config.toml").write_bytes(damage)
    path = campaign / OPEN / "config.toml"
    right = path.read_bytes()
    path.write_bytes(damage)
    result, output = go_on(campaign)
    assert result.exit_code == 1
    assert {run.name: run.status for run in result.runs} == {
        **{"a_s1": "done", "b_s1": "failed", "a_s2": "done", "b_s2": "done"}
    }
    assert f"b_s1 failed: {path} is damaged: " in output
    path.write_bytes(right)
    result, _ = go_on(campaign)
    assert (result.exit_code, {run.status for run in result.runs}) == (0, {"done"})


def test_without_its_manifest_a_campaign_says_what_is_left(
    campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_json(campaign / "manifest.json")
    for path, value in (("runs", [{"name": 1}]), ("status", 5), ("max_workers", -4)):
        atomic_write_json(campaign / "manifest.json", {**manifest, path: value})
        assert called("resume", campaign) == 2
        said = capsys.readouterr().err
        assert f"{campaign}/manifest.json is damaged: " in said
        assert path in said
        assert "retrain resume CAMPAIGN/runs/RUN" in said
    (campaign / "manifest.json").write_bytes(b"{")
    assert called("status", campaign) == 0
    said = capsys.readouterr().out
    assert "is damaged" in said
    assert "a_s1" in said
    assert called("resume-check", campaign) == 1


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*place, key)
        yield from leaves(item, (*place, key))


def changed(data: bytes, place: tuple[Any, ...], value: Any) -> bytes:
    """JSON with another value in a place; None takes the key away."""
    root = json.loads(data)
    holder = root
    for key in place[:-1]:
        holder = holder[key]
    if value is None:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return json.dumps(root).encode()


def damaged(path: Path, draw: random.Random) -> Iterator[bytes]:
    data = path.read_bytes()
    yield b""
    yield data[: draw.randrange(1, len(data))]
    flipped = bytearray(data)
    for _ in range(3):
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    yield bytes(flipped)
    yield b"\xff\xfe" + data
    yield b"[" * 5000
    yield b"[]"
    if path.suffix == ".toml":
        yield data.replace(b"= ", b"= [[[1]]] #", draw.randrange(1, 9))
        yield b"a" + b".a" * 3000 + b" = 1"
        return
    lines = data.splitlines() if path.suffix == ".jsonl" else [data]
    places = [*leaves(json.loads(lines[0]))]
    odd: list[Any] = [None, 5, -1, 1e300, "x", "\ud800", "\0", [], [[]], {}, {"a": {}}, True]
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    for value in [*odd, deep]:
        yield b"\n".join([changed(lines[0], draw.choice(places), value), *lines[1:], b""])
    yield b"\n".join([changed(lines[0], draw.choice(places), [{"b": 1}]), *lines[1:], b""])


RECORDS = (
    "manifest.json",
    *(f"{DONE}/{name}" for name in ("run.json", "evaluation/step_000002.json")),
    *(f"{OPEN}/{name}" for name in ("run.json", "config.toml", "metrics.jsonl")),
    f"{OPEN}/emergence/generations.jsonl",
)
VERBS = (
    ("status",),
    ("resume-check",),
    ("export", "--csv"),
    ("samples",),
    ("report",),
    ("sync",),
    ("diff",),
)


@pytest.mark.parametrize("record", RECORDS)
def test_no_damage_of_a_record_ends_in_a_traceback(
    once: Path, tmp_path: Path, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(record)
    folder = tmp_path / once.name
    for data in draw.sample([*damaged(once / record, draw)], 3):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(once, folder)
        (folder / record).write_bytes(data)
        there = set(snapshot(folder))
        verb, *options = draw.choice(VERBS)
        folders = (folder / DONE, folder / OPEN) if verb == "diff" else (folder,)
        assert called(verb, *folders, *options) in {0, 1, 2}
        assert "this is a bug" not in (said := capsys.readouterr().err), (verb, data, said)
        with contextlib.suppress(InputError):
            go_on(folder)
        assert there <= set(snapshot(folder)) | {str(folder / record)}
