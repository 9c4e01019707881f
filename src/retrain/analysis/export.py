"""`retrain export`: what runs measured, as tidy tables for other programs (docs/export.md)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import typer

from retrain.analysis.reading import (
    items,
    iter_rows,
    load_object,
    load_tables,
    nested,
    number,
    text,
)
from retrain.analysis.records import CampaignRecord, RunResult, RunView, find_records
from retrain.analysis.series import LAST_STEP, RunSeries, SeriesReader
from retrain.analysis.tables import Columns, CsvTable, Kind, ParquetTable, Table, kind_of
from retrain.errors import InputError
from retrain.files import RUN_FILE, atomic_writer, evaluation_files
from retrain.terminal import Terminal

SCHEMA = 1
FOLDER = "export"
PATIENCE_S = 2.0
"""What takes longer shows how far it is."""

IDENTITY: Columns = {"campaign": "text", "run": "text", "condition": "text", "seed": "int"}
SPENT: Columns = {"tokens_so_far": "int", "seconds_so_far": "float"}
EVALUATIONS: Columns = {
    **IDENTITY, "step": "int", "accuracy": "float", "greedy_accuracy": "float", **SPENT,
}  # fmt: skip
PROBLEMS: Columns = {
    **IDENTITY, "step": "int", "problem": "text", "domain": "text", "correct": "int",
    "samples": "int", "greedy": "int",
}  # fmt: skip
RECORD = ("attempts", "resumed_from", "host", "threads", "started_at", "finished_at")
"""Fields of `run.json` that a row of `runs` takes as they are."""

Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written."""

    table: str
    path: Path
    rows: int

    @property
    def size(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True, slots=True)
class Source:
    """A run, and the campaign it belongs to; empty for a single run."""

    campaign: str
    run: RunView

    @property
    def identity(self) -> list[Any]:
        return [self.campaign, self.run.name, self.run.condition, self.run.seed]


def export_command(
    paths: Sequence[Path],
    *,
    csv: bool = False,
    parquet: bool = False,
    to: Path | None = None,
    as_json: bool = False,
) -> None:
    """Write the tables and print what was written. Raises InputError for what cannot be meant."""
    if csv and parquet:
        raise InputError("--csv and --parquet exclude each other; give one, or call it twice")
    sources, folder = choose(paths, to)
    with _progress(2 * len(sources)) as tell:
        files = export(sources, folder, "parquet" if parquet else "csv", tell)
    if as_json:
        described = [
            {"table": f.table, "path": str(f.path), "rows": f.rows, "bytes": f.size} for f in files
        ]
        typer.echo(json.dumps({"schema": SCHEMA, "runs": len(sources), "files": described}))
        return
    width = max(len(str(file.path)) for file in files)
    for file in files:
        typer.echo(f"{file.path!s:<{width}}  {file.rows:>10,} rows  {file.size / 1e6:>7.1f} MB")


def choose(paths: Sequence[Path], to: Path | None) -> tuple[list[Source], Path]:
    """The runs at some paths, oldest campaign first, and the folder that the tables go to."""
    if missing := [str(path) for path in paths if not path.exists()]:
        raise InputError(
            f"no such folder: {', '.join(missing)}; give the folder of a campaign or of a run"
        )
    found = find_records(paths)
    campaigns: list[CampaignRecord] = list(reversed(found.campaigns))
    within = {run.folder.resolve() for campaign in campaigns for run in campaign.runs}
    singles = [run for run in reversed(found.runs) if run.folder.resolve() not in within]
    sources = [Source(c.name, run) for c in campaigns for run in c.runs]
    sources += [Source("", run) for run in singles]
    homes = [*(campaign.folder for campaign in campaigns), *(run.folder for run in singles)]
    if not sources:
        places = ", ".join(map(str, paths))
        raise InputError(f"no campaign and no run in {places}; nothing to export")
    if to is None and len(homes) > 1:
        raise InputError(
            f"{len(homes)} campaigns and runs go into the same tables; say where with --to FOLDER"
        )
    folder = to or homes[0] / FOLDER
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --to takes a folder")
    return sources, folder


def export(
    sources: Sequence[Source], folder: Path, form: str, tell: Tell = lambda _: None
) -> list[Written]:
    """Write the tables of these runs into `folder`, each file replaced in one instant.

    form: csv or parquet.
    tell: is told how many runs were read; each is read twice, since columns come before rows.

    One run is held at a time. A run may still be training: what it has by then is exported.
    """
    metrics = _metric_columns(sources, tell)
    run_rows = _run_rows(sources)
    columns: dict[str, Columns] = {
        "runs": _run_columns(run_rows),
        "metrics": {**IDENTITY, "step": "int", **SPENT, **metrics},
        "evaluations": EVALUATIONS,
        "problems": PROBLEMS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.{form}" for name in columns}
    counts = dict.fromkeys(columns, 0)
    with ExitStack() as stack:
        tables: dict[str, Table] = {}
        for name, path in paths.items():
            file = stack.enter_context(atomic_writer(path))
            tables[name] = (ParquetTable if form == "parquet" else CsvTable)(file, columns[name])
            # Before its file is: what is left of this stack goes backwards.
            stack.callback(tables[name].close)

        def add(name: str, rows: list[list[Any]]) -> None:
            counts[name] += len(rows)
            tables[name].add(rows)

        add("runs", [[row[name] for name in columns["runs"]] for row in run_rows])
        for done, source in enumerate(sources, start=len(sources) + 1):
            try:
                series = SeriesReader().read(source.run)
                add("metrics", _metric_rows(source, series, tuple(metrics)))
                add("evaluations", _evaluation_rows(source, series))
                add("problems", _problem_rows(source))
            except (ValueError, TypeError, OverflowError) as error:
                raise InputError(
                    f"{source.run.folder}: what it holds does not fit into {form} tables, or "
                    f"changed while it was read ({error}); try again, or the other format"
                ) from error
            tell(done)
    return [Written(name, path, counts[name]) for name, path in paths.items()]


def _metric_columns(sources: Sequence[Source], tell: Tell) -> dict[str, Kind]:
    """Every key of the runs' metrics that holds scalars, in the order in which they appear."""
    types: dict[str, set[type]] = {}
    seen: set[tuple[tuple[str, ...], tuple[type, ...]]] = set()
    for done, source in enumerate(sources, start=1):
        for row in iter_rows(source.run.metrics):
            shape = (tuple(row), tuple(map(type, row.values())))
            if shape in seen:
                continue
            seen.add(shape)
            for name, of_value in zip(*shape, strict=True):
                types.setdefault(name, set()).add(of_value)
        tell(done)
    for name in (*IDENTITY, "step", *SPENT):
        types.pop(name, None)
    return {name: kind for name, found in types.items() if (kind := kind_of(found))}


def _metric_rows(source: Source, series: RunSeries, names: Sequence[str]) -> list[list[Any]]:
    rows = {
        int(step): row
        for row in iter_rows(source.run.metrics)
        if (step := number(row, "step")) is not None and 0 <= step < LAST_STEP and step % 1 == 0
    }
    spent = zip(series.step.tolist(), series.tokens.tolist(), series.seconds.tolist(), strict=True)
    return [
        [*source.identity, step, int(tokens), seconds, *map(rows[step].get, names)]
        for step, tokens, seconds in spent
        if step in rows
    ]


def _evaluation_rows(source: Source, series: RunSeries) -> list[list[Any]]:
    return [
        [*source.identity, e.step, e.accuracy, e.greedy_accuracy, int(e.tokens), e.seconds]
        for e in series.evaluations
    ]


def _problem_rows(source: Source) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for step, path in evaluation_files(source.run.folder).items():
        for problem in items(load_object(path), "problems"):
            if not isinstance(problem, dict):
                continue
            judged = [value for value in items(problem, "correct") if value in (0, 1)]
            greedy = problem.get("greedy")
            rows.append(
                [
                    *source.identity,
                    step,
                    text(problem, "id"),
                    text(problem, "domain"),
                    sum(judged),
                    len(judged),
                    int(greedy) if greedy in (0, 1) else None,
                ]
            )
    return rows


def _run_rows(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """A row a run, all with the same keys."""
    configs = [_read_config(source.run.config) for source in sources]
    places = sorted({place for config in configs for place in config} - {"training.seed"})
    differing = [p for p in places if len({json.dumps(c.get(p)) for c in configs}) > 1]
    versions = list(dict.fromkeys(name for source in sources for name in source.run.versions))
    rows = []
    for source, config in zip(sources, configs, strict=True):
        run, record = source.run, load_object(source.run.folder / RUN_FILE)
        rows.append(
            {
                **dict(zip(IDENTITY, source.identity, strict=True)),
                "state": run.state,
                "message": run.message,
                "cause": run.cause or None,
                "steps": run.step,
                "max_steps": run.max_steps,
                **{f.name: asdict(run.result)[f.name] for f in fields(RunResult)},
                "device": run.device,
                **{name: record.get(name) for name in RECORD},
                **{f"version.{name}": run.versions.get(name) for name in versions},
                **{f"config.{place}": config.get(place) for place in differing},
            }
        )
    return rows


def _run_columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    kinds = {name: kind_of({type(row[name]) for row in rows}) for name in rows[0]}
    return {**{name: kind for name, kind in kinds.items() if kind}, **IDENTITY}


def _read_config(path: Path) -> dict[str, Any]:
    """`table.key` -> value of a resolved config; lists and tables within as JSON text."""
    tables = load_tables(path)
    found: dict[str, Any] = {}
    for table in tables:
        for key, value in nested(tables, table).items():
            plain = not isinstance(value, dict | list)
            found[f"{table}.{key}"] = value if plain else json.dumps(value, default=str)
    return found


@contextmanager
def _progress(total: int) -> Iterator[Tell]:
    """A bar on a terminal, once it has taken a while."""
    from rich.progress import Progress

    started = time.monotonic()
    console = Terminal(stderr=True)
    with ExitStack() as stack:
        bar: Progress | None = None
        task = None

        def tell(done: int) -> None:
            nonlocal bar, task
            if bar is None and console.is_terminal and time.monotonic() - started > PATIENCE_S:
                bar = stack.enter_context(Progress(console=console, transient=True))
                task = bar.add_task("exporting", total=total)
            if bar is not None and task is not None:
                bar.update(task, completed=done)

        yield tell
