"""A squeeze from its settings to its files: analysis, pictures, compressed adapter, check.

The folder of a squeeze holds `squeeze.json`, which is written anew after every stage, the pictures,
and what the check trained. What fails after the analysis never takes the analysis away.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retrain.analysis.squeezed import SQUEEZE_FILE, check_text, squeeze_text
from retrain.config.dump import read_run_config
from retrain.config.inference import InferenceConfig
from retrain.config.load import LoadedConfig
from retrain.config.schema import BackendConfig, LoggingConfig, RunConfig, SqueezeConfig
from retrain.config.table import Table
from retrain.errors import ConfigError, ConfigIssue, InputError
from retrain.experiments.paths import shown
from retrain.experiments.workers import thread_environment, threads_of
from retrain.files import (
    FINAL_FOLDER,
    RUN_CONFIG_FILE,
    atomic_write_json,
    create_timestamped_folder,
    expanded,
)
from retrain.models.adapters.reader import open_adapter
from retrain.models.adapters.settings import ADAPTER_CONFIG
from retrain.policies.tinker.paths import STATE_FILE, SavedState, is_service_path
from retrain.squeeze import (
    SqueezeAnalysis,
    SqueezeResult,
    analyze_adapter,
    compress_adapter,
    pictures,
    render_table,
)
from retrain.terminal import Terminal, say
from retrain.tracking.squeeze import track_squeeze

if TYPE_CHECKING:
    from retrain.training.adapter_check import AdapterChecker

ADAPTER_FOLDER = "adapter"
FINETUNE_FOLDER = "finetune"
DOWNLOAD_FOLDER = "downloaded"
SCHEMA = 1

# Tables that say which model is checked, and on what.
_CHECK_TABLES = ("model", "data", "reward", "evaluation", "training")
_OF_NO_MODEL = {"model.lora_rank", "model.base_url"}


def squeeze_alone(
    loaded: LoadedConfig, *, as_json: bool = False, console: Console | None = None
) -> Path:
    """`[squeeze]` without `[campaign]`: the folder with what came out.

    Raises InputError for an adapter that cannot be squeezed or checked.
    """
    console = console or Terminal()
    settings = loaded.config.squeeze
    assert settings is not None
    remote = is_service_path(settings.adapter_path)
    adapter = None if remote else _from(loaded.base_dir, settings.adapter_path)
    written = {key for key, source in loaded.sources.items() if source != "default"}
    if not settings.source_rank and "model.lora_rank" in written:
        rank = loaded.config.model.lora_rank
        settings = settings.model_copy(update={"source_rank": rank})
    config = _config_of(loaded, adapter, written) if settings.check else None
    if adapter is not None:
        with open_adapter(adapter, settings.adapter_name or None):
            # What is no adapter leaves no folder behind.
            pass
    folder = create_timestamped_folder(Path(loaded.config.logging.log_dir), "squeeze")
    output = folder / ADAPTER_FOLDER if settings.check else None
    if settings.output_path:
        output = _from(Path.cwd(), settings.output_path)
    quiet = Terminal(quiet=True) if as_json else console
    try:
        if adapter is None:
            base_url = loaded.config.model.base_url
            adapter = _downloaded(settings.adapter_path, folder, base_url, quiet)
        squeeze(settings, adapter, folder, output=output, config=config, console=quiet)
    finally:
        if not (folder / SQUEEZE_FILE).exists():
            shutil.rmtree(folder)
    _track(loaded.config.logging, folder, Terminal(stderr=True) if as_json else console)
    if as_json:
        console.file.write((folder / SQUEEZE_FILE).read_text(encoding="utf-8"))
    else:
        say(console, f"squeeze: {shown(folder)}")
        if output is not None:
            say(console, f"adapter: {shown(output)}")
    return folder


def squeeze_run(settings: SqueezeConfig, run_dir: Path, folder: Path, console: Console) -> None:
    """Squeeze the final adapter of a campaign's run into `folder`, compressed as well."""
    config = read_run_config(run_dir / RUN_CONFIG_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    adapter = run_dir / FINAL_FOLDER
    if (adapter / STATE_FILE).exists() and not (adapter / ADAPTER_CONFIG).exists():
        # It could not be downloaded when the run ended.
        path = SavedState.read(adapter).path
        adapter = _downloaded(path, folder, config.model.base_url, console)
    squeeze(
        settings,
        adapter,
        folder,
        output=folder / ADAPTER_FOLDER,
        config=_here(config) if settings.check else None,
        console=console,
    )
    _track(config.logging, folder, console)


def _downloaded(path: str, folder: Path, base_url: str, console: Console) -> Path:
    """The service's adapter at `path`, in a folder of its own in `folder`."""
    from retrain.policies.tinker.download import download_adapter

    target = folder / DOWNLOAD_FOLDER
    with console.status(f"downloading {path}"):
        download_adapter(path, target, base_url)
    return target


def squeeze(
    settings: SqueezeConfig,
    adapter: Path,
    folder: Path,
    *,
    output: Path | None,
    config: RunConfig | None,
    console: Console,
) -> None:
    """Analyse `adapter`, and say and write into `folder` what was found.

    output: where the compressed adapter goes; None writes none.
    config: what the check evaluates it with; None checks nothing, and needs no `output`.
    """
    if "torch" not in sys.modules:
        backend = config.backend if config else BackendConfig()
        os.environ.update(thread_environment(threads_of(backend)))
    analysis, result = _analyze(settings, adapter, output, console)
    compressed = None
    if result is not None:
        summary = result.summary()
        compressed = {key: value for key, value in summary.items() if key != "analysis"}
        compressed["folder"] = str(result.output_path)
    document = {
        "schema": SCHEMA,
        "table": render_table(analysis),
        **analysis.to_json(),
        "compressed": compressed,
        "check": None,
        "finetuned": None,
    }
    atomic_write_json(folder / SQUEEZE_FILE, document)
    say(console, squeeze_text(document))
    pictures(analysis, folder)
    if config is not None and result is not None:
        _check(settings, adapter, folder, document, config, result, console)


def _analyze(
    settings: SqueezeConfig, adapter: Path, output: Path | None, console: Console
) -> tuple[SqueezeAnalysis, SqueezeResult | None]:
    with _named_keys(), _progress(console, "layers") as tell:
        asked: dict[str, Any] = {
            "min_variance_retention": settings.min_variance_retention,
            "source_rank": settings.source_rank,
            "target_ranks": tuple(settings.target_ranks),
            "adapter_name": settings.adapter_name or None,
            "device": settings.device,
            "dtype": settings.dtype,
            "on_module": tell,
        }
        if output is None:
            return analyze_adapter(adapter, **asked), None
        rank, allocation = settings.compress_to, settings.allocation
        result = compress_adapter(adapter, output, rank=rank, allocation=allocation, **asked)
        return result.analysis, result


@contextmanager
def _named_keys() -> Iterator[None]:
    """What is wrong with a setting is told by its key."""
    try:
        yield
    except InputError as error:
        name, _, message = str(error).partition(": ")
        key = "compress_to" if name == "rank" else name
        if key not in SqueezeConfig.model_fields:
            raise
        raise ConfigError([ConfigIssue(f"squeeze.{key}", message)]) from None


def _check(
    settings: SqueezeConfig,
    adapter: Path,
    folder: Path,
    document: dict[str, Any],
    config: RunConfig,
    result: SqueezeResult,
    console: Console,
) -> None:
    from retrain.training.adapter_check import AdapterChecker
    from retrain.training.run import BaseModels

    bases = BaseModels()
    with console.status("evaluating the original and the compressed adapter"):
        base = bases.get(config.model, config.backend)
        name = settings.adapter_name or None
        checker = AdapterChecker(config, base, adapter, name)
        check = asdict(checker.compare(result.output_path))
    document["check"] = check
    atomic_write_json(folder / SQUEEZE_FILE, document)
    say(console, "\n" + check_text(result.rank, 0, check))
    if settings.finetune_steps:
        document["finetuned"] = _finetune(settings, folder, config, result, checker, console)
        atomic_write_json(folder / SQUEEZE_FILE, document)


def _finetune(
    settings: SqueezeConfig,
    folder: Path,
    config: RunConfig,
    result: SqueezeResult,
    checker: AdapterChecker,
    console: Console,
) -> dict[str, Any]:
    """Train the compressed adapter on, and compare it with the original once more."""
    from retrain.training.run import train_run

    steps, name = settings.finetune_steps, f"squeeze_rank{result.rank}"
    changed = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    "lora_rank": result.rank,
                    "lora_alpha": config.model.alpha * result.rank / result.analysis.source_rank,
                    "init_adapter": str(result.output_path),
                }
            ),
            "training": config.training.model_copy(update={"max_steps": steps}),
            # The squeeze has a tracked run of its own.
            "logging": config.logging.model_copy(update={"wandb_project": ""}),
            "evaluation": config.evaluation.model_copy(
                update={"every": 0, "before_training": False}
            ),
        }
    )
    run_dir = folder / FINETUNE_FOLDER
    with _progress(console, "steps of training on") as tell:
        trained = train_run(
            changed,
            run_dir,
            name=name,
            condition=name,
            on_row=lambda row: tell(int(row["step"]) + 1, steps),
        )
    outcome = {"steps": trained.steps, "status": trained.status, "folder": str(run_dir)}
    if trained.status != "done":
        say(console, f"training the compressed adapter on {trained.status}: {trained.message}")
        return outcome
    check = asdict(checker.compare(run_dir / FINAL_FOLDER))
    say(console, "\n" + check_text(result.rank, trained.steps, check))
    return outcome | check


def _config_of(loaded: LoadedConfig, adapter: Path | None, written: set[str]) -> RunConfig:
    """What the check evaluates with: the file's own tables, else those of the adapter's run.

    adapter: None for one of a service.
    """
    if any(key.partition(".")[0] in _CHECK_TABLES for key in written - _OF_NO_MODEL):
        return _here(loaded.run_config(loaded.conditions[0], loaded.seeds[0]))
    for folder in (adapter.parent, adapter.parent.parent) if adapter else ():
        if (folder / RUN_CONFIG_FILE).is_file():
            return _here(read_run_config(folder / RUN_CONFIG_FILE))
    assert loaded.config.squeeze is not None
    named = adapter or loaded.config.squeeze.adapter_path
    message = (
        f"needs to know the model and the problems: {named} lies in no run of retrain, so write "
        "[model], [data], [reward] and [evaluation]"
    )
    raise ConfigError([ConfigIssue("squeeze.check", message, file=loaded.name)])


def _here(config: RunConfig) -> RunConfig:
    """The config on this machine, where a check computes, wherever the run was trained."""
    here: dict[str, Table] = {"inference": InferenceConfig()}
    if config.backend.backend != "local":
        here["backend"] = BackendConfig()
    return config.model_copy(update=here)


def _track(settings: LoggingConfig, folder: Path, console: Console) -> None:
    if problem := track_squeeze(settings, folder):
        say(console, problem)


def _from(folder: Path, path: str) -> Path:
    return folder / expanded(path)


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere; it is told (done, total)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown_bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown_bar as progress:
        task = progress.add_task(what, total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield tell
