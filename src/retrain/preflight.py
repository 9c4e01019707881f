"""Checks that need the parts themselves: plugins, tasks, rewards, the model's folder, the disk.

Everything is tried once before the first run starts, for every condition, without torch. Plugins
are imported and called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrain.config.conditions import Condition
from retrain.config.findings import written_key
from retrain.config.load import LoadedConfig, Override, Reading, read_config
from retrain.config.messages import no_such, show
from retrain.config.sameness import same_conditions
from retrain.config.schema import RunConfig
from retrain.data_preflight import check_references, check_task_and_model
from retrain.errors import ConfigError, ConfigIssue, InputError, RetrainError
from retrain.experiments.memory import has_gpu
from retrain.files import expanded
from retrain.tasks.problems import ProblemListTask
from retrain.tasks.task import Task
from retrain.tracking.trackers import trackers_of

_MODES = ("algorithm.advantage_mode", "algorithm.transform_mode")
_PLUGIN_KEYS = (*_MODES, "algorithm.algorithm_mode", "algorithm.uncertainty_kind")
_PLACE = re.compile(r"([a-z_]+\.[a-z_]+(?:\[\d+\]\.[a-z_]+)?): (.*)", re.DOTALL)


def load_checked(
    path: Path | str | None = None,
    overrides: Sequence[Override] = (),
    seeds: Sequence[int] | None = None,
    *,
    begun: bool = False,
) -> tuple[LoadedConfig, list[str]]:
    """Read a config and try its parts: (config, warnings), or one ConfigError with all errors.

    begun: the run is to be resumed; what only its first step needs may be gone.
    """
    return check_reading(read_config(path, overrides, seeds), begun=begun)


def check_reading(reading: Reading, *, begun: bool = False) -> tuple[LoadedConfig, list[str]]:
    """The same for a config that is read already."""
    if reading.loaded.is_squeeze:
        # Nothing is trained: what is odd about training is no matter.
        warnings = [text for text in reading.loaded.warnings if text.startswith("squeeze.")]
        return reading.require(), warnings
    known = {issue.key for issue in reading.issues}
    found = _Findings(reading.loaded, known, begun)
    found.check()
    issues = [*reading.issues, *found.issues]
    if issues:
        raise ConfigError(issues)
    sizes = [task.nbytes for task in found.tasks.values() if isinstance(task, ProblemListTask)]
    loaded = replace(reading.loaded, data_bytes=max(sizes, default=0))
    same = same_conditions(loaded.conditions)
    return loaded, [*loaded.warnings, *same, *found.warnings]


def check_data(loaded: LoadedConfig) -> list[str]:
    """Warnings about the tasks and models of a config, once its data has been downloaded.

    Raises ConfigError with all that is wrong.
    """
    found = _Findings(loaded, (), begun=True)
    of_data = (check_task_and_model, check_references)
    found.check_conditions([check for check in _CHECKS if check.run in of_data])
    if found.issues:
        raise ConfigError(found.issues)
    return found.warnings


class _Findings:
    """Errors and warnings, each once, however many conditions share its cause."""

    def __init__(self, loaded: LoadedConfig, known: Iterable[str], begun: bool) -> None:
        self.loaded = loaded
        self.begun = begun or loaded.resume_from is not None
        self.issues: list[ConfigIssue] = []
        self.warnings: list[str] = []
        self.tasks: dict[tuple[str, ...], Task | InputError] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._known = {re.sub(r"^campaign\.conditions\[\d+\]\.", "", key) for key in known}
        self._table_broken = any("." not in key for key in self._known)

    def check(self) -> None:
        self._log_dir()
        self._search_paths()
        self._resumed()
        self._tracking()
        self._devices()
        self.check_conditions(_CHECKS)

    def check_conditions(self, checks: Sequence[_Check]) -> None:
        for condition in self.loaded.conditions:
            run = _with_folders(self.loaded.run_config(condition, self.loaded.seeds[0]))
            for check in checks:
                broken = any(key.partition(".")[0] in check.needs for key in self._known)
                if not broken and not self._seen_before(check, condition, run):
                    check.run(self, condition, run)

    def _seen_before(self, check: _Check, condition: Condition, run: RunConfig) -> bool:
        """Whether an earlier condition had the same values, from the same place."""
        if any(key.partition(".")[0] in check.tables for key in condition.written):
            return False
        values = (check, *(getattr(run, table).model_dump_json() for table in check.tables))
        seen = values in self._seen
        self._seen.add(values)
        return seen

    def error(self, condition: Condition | None, key: str, message: str) -> None:
        self._add(condition, key, message, is_error=True)

    def warn(self, condition: Condition | None, key: str, message: str) -> None:
        self._add(condition, key, message, is_error=False)

    def _add(self, condition: Condition | None, key: str, message: str, *, is_error: bool) -> None:
        if key in self._known:
            return
        in_condition = condition is not None and written_key(key) in condition.written
        if self._table_broken and not in_condition and self._is_default(key):
            return
        if condition is not None and in_condition:
            name = key.removeprefix("algorithm.") if key in _MODES else key
            key = f"{condition.place}.{name}"
        if is_error:
            source = self.loaded.sources.get(key, "")
            file = source if source.startswith("--") else str(self.loaded.path or "")
            issue = ConfigIssue(key, message, file=file)
            if issue not in self.issues:
                self.issues.append(issue)
        elif (warning := f"{key}: {message}") not in self.warnings:
            self.warnings.append(warning)

    def _is_default(self, key: str) -> bool:
        """Whether the value may only be a default because its table is misspelt."""
        return self.loaded.sources.get(key) == "default"

    def attempt(self, condition: Condition, key: str, call: Callable[[], object]) -> bool:
        """Whether `call` went well; else what it raised is an error at the key that it names."""
        try:
            call()
        except (RetrainError, ValueError) as error:
            place = _PLACE.fullmatch(str(error))
            message = place[2] if place else str(error)
            self.error(condition, place[1] if place else key, message)
            return False
        except (Exception, SystemExit) as error:
            self.error(condition, key, f"failed: {type(error).__name__}: {error}")
            return False
        return True

    def _log_dir(self) -> None:
        log_dir = Path(self.loaded.run_config(self.loaded.conditions[0], 0).logging.log_dir)
        existing = next(p for p in (log_dir, *log_dir.parents) if p.exists() or p.is_symlink())
        if existing.is_symlink() and not existing.exists():
            self.error(None, "logging.log_dir", f"{existing} is a link that leads nowhere")
        elif not existing.is_dir():
            self.error(None, "logging.log_dir", f"{existing} is a file, not a folder")
        elif not os.access(existing, os.W_OK | os.X_OK):
            message = f"{existing} cannot be written to; choose another folder"
            self.error(None, "logging.log_dir", message)

    def _search_paths(self) -> None:
        base_dir = self.loaded.base_dir
        for path in self.loaded.config.plugins.search_paths:
            folder = base_dir / expanded(path)
            if not folder.is_dir():
                names = [entry.name for entry in base_dir.iterdir() if entry.is_dir()]
                self.error(None, "plugins.search_paths", no_such("folder", folder, path, names))

    def _tracking(self) -> None:
        settings = self.loaded.config.logging
        for tracker in trackers_of(settings):
            if not tracker.is_installed():
                message = (
                    f"{show(settings.wandb_project)} needs the package {tracker.name}, which is "
                    f"not installed; run: {tracker.remedy}"
                )
                self.error(None, "logging.wandb_project", message)

    def _devices(self) -> None:
        """A warning: where a config is looked at need not be where it is trained."""
        wanted = {"backend.device": self.loaded.config.backend.device}
        if campaign := self.loaded.config.campaign:
            wanted["campaign.devices"] = " ".join(campaign.device_list)
        for key, device in wanted.items():
            if "cuda" in device and not has_gpu():
                self.warn(None, key, f"{show(device)}, and this machine has no GPU for CUDA")

    def _resumed(self) -> None:
        from retrain.analysis.records import MANIFEST_FILE
        from retrain.files import RUN_FILE

        folder = self.loaded.resume_from
        if folder is None or any((folder / name).is_file() for name in (MANIFEST_FILE, RUN_FILE)):
            return
        from retrain.experiments.outlook import nothing_in

        self.error(None, "resume.from", nothing_in(folder))


def _with_folders(run: RunConfig) -> RunConfig:
    """`run` with the search paths that exist, so that a missing one is reported only once."""
    folders = [path for path in run.plugins.search_paths if Path(path).is_dir()]
    return run.model_copy(
        update={"plugins": run.plugins.model_copy(update={"search_paths": folders})}
    )


def _algorithm(found: _Findings, condition: Condition, run: RunConfig) -> None:
    from retrain.advantages.algorithm import AlgorithmError, algorithm_of
    from retrain.advantages.credit import probe_algorithm
    from retrain.policies.backends import capabilities_of, place_of

    settings = run.algorithm
    dotted = [key for key in _PLUGIN_KEYS if "." in getattr(settings, key.partition(".")[2])]

    def complain(key: str, message: str) -> None:
        report = found.error if run.plugins.strict or key not in dotted else found.warn
        report(condition, key, message)

    try:
        algorithm = algorithm_of(run)
    except AlgorithmError as error:
        for key, message in error.problems:
            complain(key, message)
        return
    try:
        for warning in probe_algorithm(algorithm):
            found.warn(condition, dotted[0] if dotted else "algorithm", warning)
    except ValueError as error:
        guilty = [key for key in dotted if getattr(settings, key.partition(".")[2]) in str(error)]
        complain((guilty or dotted or ["algorithm.advantage_mode"])[0], str(error))
    if algorithm.needs_entropies and not capabilities_of(run).token_entropies:
        message = f"needs token entropies, which {place_of(run)} does not give"
        found.error(condition, "algorithm.uncertainty_kind", message)
    if algorithm.uses_sepa:
        _sepa(found, condition, run)


def _sepa(found: _Findings, condition: Condition, run: RunConfig) -> None:
    from retrain.advantages.sepa import SepaSchedule, full_pooling_step

    sepa, max_steps = run.sepa, run.training.max_steps
    schedule = SepaSchedule.of(sepa)
    # In a single step nothing can rise.
    if max_steps > 1 and full_pooling_step(schedule, max_steps) is None:
        if sepa.steps == 0 and sepa.schedule == "auto":
            return
        if sepa.steps == 0:
            message = "0 keeps lambda at 0, which makes gtpo_sepa the same as gtpo"
        else:
            message = (
                f"lambda would reach 1 at step {sepa.delay_steps + sepa.steps} (delay_steps + "
                f"steps), but the last step is {max_steps - 1}; it ends at "
                f"{schedule.linear(max_steps - 1):.2f}"
            )
        found.warn(condition, "sepa.steps", message)


def _backend(found: _Findings, condition: Condition, run: RunConfig) -> None:
    from retrain.cores import available_cores
    from retrain.policies.backends import BACKENDS
    from retrain.policies.inference.vllm import program_problem

    name = show(run.backend.backend)
    capabilities = BACKENDS[run.backend.backend]
    if run.loss.type not in capabilities.losses:
        message = f"backend {name} does not know {show(run.loss.type)}"
        found.error(condition, "loss.type", message)
    if run.loss.kl_coef > 0 and not capabilities.kl_to_base:
        found.error(condition, "loss.kl_coef", f"backend {name} has no KL penalty; set it to 0.0")
    if run.loss.dual_clip is not None and not capabilities.dual_clip:
        found.error(condition, "loss.dual_clip", f"backend {name} has no dual clip; leave it out")
    if not capabilities.tempered_loss:
        for key in ("temperature", "top_p"):
            if getattr(run.training, key) != 1.0:
                message = (
                    f"backend {name} computes the loss at temperature 1 of the whole distribution, "
                    "so the ratio of policy and sampler would be wrong; set it to 1.0"
                )
                found.error(condition, f"training.{key}", message)
    if run.backend.backend == "tinker":
        _service(found, condition, run)
        return
    if run.inference.engine == "vllm" and (problem := program_problem(run.inference.command)):
        found.warn(condition, "inference.command", problem)
    cores = available_cores()
    if run.backend.threads > cores:
        message = f"{run.backend.threads} threads on {cores} cores slow each other down"
        found.warn(condition, "backend.threads", message)


def _service(found: _Findings, condition: Condition, run: RunConfig) -> None:
    """What can be known of a service without asking it. A key that is missing is a warning: a
    config can be looked at without one, and nothing is trained without it."""
    from retrain.policies.tinker.access import access_problem
    from retrain.policies.tinker.paths import ServicePath, is_service_path

    if problem := access_problem():
        found.warn(condition, "backend.backend", problem)
    if (path := run.model.init_adapter) and not is_service_path(path):
        message = f"{path} is no adapter of the service, which look like tinker://…/weights/…"
        found.error(condition, "model.init_adapter", message)
    elif path:
        found.attempt(condition, "model.init_adapter", lambda: ServicePath.parse(path))


def _reward(found: _Findings, condition: Condition, run: RunConfig) -> None:
    import numpy as np

    from retrain.config.reward_checks import keys_wanted
    from retrain.rewards.registry import build_reward
    from retrain.types import Completion, Problem

    completion = Completion(np.arange(3), np.full(3, -0.5), "The answer is \\boxed{1}.", "stop")
    problem = Problem(id="made up", prompt="What is 2 - 1?", answer="1")
    paths = run.plugins.search_paths

    def try_reward() -> None:
        build_reward(run.reward, paths).probe(problem, completion)

    if not run.plugins.strict:
        trial = _Findings(found.loaded, (), found.begun)
        if not trial.attempt(condition, "reward.custom_function", try_reward):
            found.warnings += [f"{issue.key}: {issue.message}" for issue in trial.issues]
    else:
        found.attempt(condition, "reward.custom_function", try_reward)
    for key, message in keys_wanted(run.reward):
        found.warn(condition, key, message)


@dataclass(frozen=True, slots=True)
class _Check:
    """One check of a run's parts.

    needs: tables that must be free of errors; what is in error is not reported twice.
    reads: further tables that it looks at.
    """

    run: Callable[[_Findings, Condition, RunConfig], None]
    needs: tuple[str, ...]
    reads: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        return (*self.needs, *self.reads)


_CHECKS = (
    _Check(_algorithm, ("algorithm", "gtpo", "hicra", "plugins", "logging"), ("sepa", "training")),
    _Check(_backend, ("backend", "loss"), ("training", "model", "inference")),
    _Check(_reward, ("reward", "plugins")),
    _Check(check_task_and_model, ("data", "model", "plugins"), ("training", "evaluation")),
    _Check(check_references, ("data", "model", "plugins", "reward")),
)
