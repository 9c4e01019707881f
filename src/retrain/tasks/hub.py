"""Data sets of the Hugging Face hub, through the `datasets` library and its cache.

What is cached is used as it is, without asking the network, so that every worker and every
resumed run has the same rows; `fetch` is the only function here that uses the network, and asks
once, briefly, whether the hub answers before the library begins its retries.

A folder of this machine can stand for a data set: a copy of its repository, as
`hf download ORG/NAME --repo-type dataset --local-dir FOLDER` makes.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrain.answers import without_key
from retrain.config.data import DataConfig
from retrain.config.messages import did_you_mean, show
from retrain.errors import InputError
from retrain.files import lfs_pointer
from retrain.tasks.problems import ProblemListTask, Wanted
from retrain.tasks.reading import Columns, numbered
from retrain.tasks.rows import Collected, Fields, Unmarked, collect, settle

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT_NAME = re.compile(r"[\w.]+")
_NAMES = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class HubData:
    """One configuration of a data set.

    repo: its id, or the absolute path of a local copy. `subset` and `revision` may be empty.
    """

    repo: str
    subset: str = ""
    revision: str = ""

    @classmethod
    def of(cls, data: DataConfig) -> HubData:
        """What `source = "hub"` names. Raises InputError for what is no id."""
        return cls(_checked(data), data.subset, data.revision)

    @property
    def is_local(self) -> bool:
        return Path(self.repo).is_absolute()

    def __str__(self) -> str:
        subset = f" ({self.subset})" if self.subset else ""
        return f"{self.repo}{subset}" + (f" at {self.revision}" if self.revision else "")


def read_hub_task(data: DataConfig, wanted: Wanted = Wanted()) -> ProblemListTask:  # noqa: B008
    """The task of `[data].path`, any data set of the hub with the fields that `[data]` names."""
    source = HubData.of(data)
    fields = Fields.of(data, wanted.metadata)

    def problems(split: str, key: str, unmarked: Unmarked, wanted: Wanted) -> Collected:
        found = rows(source, split, key, fields.columns)
        return collect(found, fields, "data.path", f"{source} {split}", unmarked, wanted)

    if data.held_out_split:
        main = problems(data.split, "data.split", "train", replace(wanted, held_out=0))
        judged = replace(wanted, train=0)
        other = problems(data.held_out_split, "data.held_out_split", "held_out", judged)
        parts = [main, other]
    else:
        main = problems(data.split, "data.split", "tenth", wanted)
        parts = [main]
    notes = settle(parts, data)
    if not main.train:
        because = "".join(f"; {note}" for note in notes)
        raise InputError(f"data.path: {source} {data.split} holds no training problem{because}")
    task = ProblemListTask(source.repo, main.train, parts[-1].held_out, data.shuffle)
    task.whole = all(part.whole for part in parts)
    return task.noted(("data.path", note) for note in notes).apart()


def rows(
    wanted: HubData, split: str, key: str, columns: Columns | None = None
) -> Iterator[tuple[str, Any]]:
    """("row N", dict or BadRowError) of a split, which must be cached; `key` is its config key."""
    with _quiet():
        if wanted.is_local:
            builder = _local_builder(wanted)
        else:
            builder = _cached_builder(wanted)
            if builder is None:
                raise InputError(f"data.path: {wanted} is not on this machine")
        names = [str(name) for name in builder.info.splits or ()]
        if _SPLIT_NAME.fullmatch(split) and split not in names:
            raise InputError(
                f"{key}: {wanted} has no split {show(split)}; it has {', '.join(names)}"
                f"{did_you_mean(split, names)}"
            )
        try:
            dataset = builder.as_dataset(split=split)
        except ValueError as error:
            raise InputError(f"{key}: {show(split)}: {error}") from error
    read = columns(dataset.column_names) if columns else None
    if read is not None:
        dataset = dataset.select_columns(read)
    yield from numbered(dataset.with_format("arrow").iter(batch_size=256))


def is_cached(wanted: HubData) -> bool:
    """Whether no download is needed."""
    if wanted.is_local:
        return True
    with _quiet():
        return _cached_builder(wanted) is not None


def fetch(wanted: HubData) -> None:
    """Download into the cache of the `datasets` library. Raises InputError with the remedy."""
    import datasets

    if Path(wanted.repo).exists():
        # The library would take the folder for the data set.
        raise InputError(
            f"data.path: {wanted.repo} is the hub's, but the current folder has one of that name; "
            f'start from another folder, or write path = "./{wanted.repo}" if you mean it'
        )
    _ask(wanted)
    try:
        with _quiet(bars=sys.stderr.isatty()):
            datasets.load_dataset_builder(
                wanted.repo, wanted.subset or None, revision=wanted.revision or None
            ).download_and_prepare()
            arrived = _cached_builder(wanted) is not None
    except Exception as error:
        raise _explained(error, wanted) from error
    if not arrived:
        raise InputError(
            f"data.path: {wanted} was downloaded, but is not in the cache of the datasets library "
            f"({datasets.config.HF_DATASETS_CACHE})"
        )


def _checked(data: DataConfig) -> str:
    path = data.path
    if Path(path).is_absolute():
        if not Path(path).is_dir():
            raise InputError(f"data.path: there is no folder {path}")
        if data.revision:
            raise InputError(f"data.revision: {path} is a folder, which has no revisions")
        return path
    if not _ID.fullmatch(path):
        raise InputError(
            f"data.path: {show(path)} is neither a folder nor the id of a data set on the hub, "
            'e.g. "openai/gsm8k"'
        )
    return path


def _local_builder(wanted: HubData) -> Any:
    import datasets

    folder = Path(wanted.repo)
    choice: dict[str, Any] = {"name": wanted.subset or None}
    readme = folder / "README.md"
    if wanted.subset and (folder / wanted.subset).is_dir() and not _names_configs(readme):
        choice = {"data_dir": wanted.subset}
    try:
        builder = datasets.load_dataset_builder(wanted.repo, **choice)
        builder.download_and_prepare()
    except Exception as error:
        raise _explained(error, wanted) from error
    return builder


def _names_configs(readme: Path) -> bool:
    """Whether a data set's card says which files belong to which subset."""
    try:
        head = readme.read_text(encoding="utf-8").partition("\n---")[0]
    except OSError:
        return False
    return re.search(r"^configs:", head, re.MULTILINE) is not None


def _cached_builder(wanted: HubData) -> Any:
    """A builder of what is cached, None when it is not there."""
    from datasets.packaged_modules.cache.cache import Cache

    def builder(config: str | None, version: str, commit: str) -> Any:
        return Cache(
            repo_id=wanted.repo,
            dataset_name=wanted.repo.rpartition("/")[2],
            config_name=config,
            version=version,
            hash=commit,
        )

    commit = _commit(wanted)
    if commit is not None:
        found = builder(wanted.subset or "default", "0.0.0", commit)
        if found.info.splits:
            return found
    try:
        newest = builder(wanted.subset or None, "auto", "auto")
    except (ValueError, OSError):
        # Nothing is cached, or several subsets are and none is named, or only what a download
        # that was killed has left.
        return None
    if commit is None:
        return None if wanted.revision else newest
    if newest.hash == commit:
        return newest
    other = builder(newest.config.name, str(newest.config.version), commit)
    if other.info.splits:
        return other
    return None if wanted.revision else newest


def _commit(wanted: HubData) -> str | None:
    """The commit that a revision meant when the hub was last asked."""
    from huggingface_hub import constants

    revision = wanted.revision or constants.DEFAULT_REVISION
    if _COMMIT.fullmatch(revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{wanted.repo.replace('/', '--')}"
    try:
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _ask(wanted: HubData) -> None:
    """One short request: is the hub there, and does it have the data set?

    Without a network the library would retry every file for a minute.
    """
    from huggingface_hub import HfApi, constants

    try:
        HfApi().dataset_info(
            wanted.repo,
            revision=wanted.revision or None,
            timeout=float(constants.HF_HUB_ETAG_TIMEOUT),
        )
    except Exception as error:
        raise _explained(error, wanted) from error


def _explained(error: Exception, wanted: HubData) -> InputError:
    """What a user can do about an error of the hub or of the library."""
    from huggingface_hub import errors

    repo = wanted.repo
    reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    reason = without_key(reason, "HF_TOKEN")
    match error:
        case InputError():
            return error
        case errors.GatedRepoError():
            return InputError(
                f"data.path: {repo} is gated: ask for access at "
                f"https://huggingface.co/datasets/{repo}, then run: hf auth login"
            )
        case errors.RevisionNotFoundError():
            return InputError(f"data.revision: {repo} has no revision {show(wanted.revision)}")
        case errors.RepositoryNotFoundError():
            return InputError(
                f"data.path: the hub has no data set {repo}, or it is private: see that the id is "
                "right, or run: hf auth login"
            )
        case ValueError() if "onfig" in reason and (names := _NAMES.search(str(error))):
            known = [name.strip(" '\"") for name in names[1].split(",")]
            wrong = (
                f"{repo} has no subset {show(wanted.subset)}; it has {', '.join(known)}"
                f"{did_you_mean(wanted.subset, known)}"
                if wanted.subset
                else f"is missing; {repo} has several: {', '.join(known)}"
            )
            return InputError(f"data.subset: {wrong}")
        case _ if wanted.is_local:
            files = sorted(Path(repo).rglob("*.*"))
            pointer = next((found for file in files if (found := lfs_pointer(file))), "")
            unread = f"{wanted} cannot be read as a data set: {reason}"
            return InputError(f"data.path: {pointer or unread}")
        case _ if _is_of_the_network(error):
            return InputError(_unreachable(wanted, reason))
        case _:
            return InputError(f"data.path: {wanted} cannot be read as a data set: {reason}")


def _is_of_the_network(error: BaseException) -> bool:
    from huggingface_hub import errors

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionError | TimeoutError | errors.HfHubHTTPError):
            return True
        if type(seen).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore"):
            return True
        seen = seen.__cause__
    return False


def _unreachable(wanted: HubData, reason: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    folder = wanted.repo.rpartition("/")[2]
    return (
        f"data.source: {wanted} is not on this machine, and the hub cannot be reached ({reason}); "
        "where there is a network, run `python -m retrain.tasks.download X.toml` with the same "
        f"HF_HOME, or copy a folder from there: `hf download {wanted.repo} --repo-type dataset "
        f'--local-dir {folder}`, and write path = "./{folder}"'
    )


@contextlib.contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
    """The library without its warnings, and without progress bars unless `bars`."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_bars = datasets.are_progress_bars_disabled() is False
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if not bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
