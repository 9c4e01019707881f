"""What a run is made of besides its config: its problems, its model, the code of its plugins.

Each part is known by a hash of its content and not by its name, so that what was edited is
another part, and what was only moved is the same. Needs no torch.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from retrain.config.load import EMBEDDED
from retrain.config.reward import RewardComponentConfig, RewardConfig
from retrain.config.schema import ModelConfig, RunConfig
from retrain.files import expanded
from retrain.plugins import PluginError, file_of, resolve
from retrain.tasks.download import missing
from retrain.tasks.problems import ProblemListTask
from retrain.tasks.registry import load_task, needs_of
from retrain.tasks.task import Task
from retrain.types import Problem

Contents = dict[str, str]
"""A name of `config.changes.CONTENTS` -> hash. What is built in, or cannot be known here, is left
out."""

WHOLE_BYTES = 16 << 20
SAMPLES, SAMPLE_BYTES, HEAD_BYTES = 64, 1 << 16, 1 << 20
_OF_MODELS = {".json", ".jinja", ".model", ".txt", ".safetensors", ".bin"}
_PROBED = 8

_sources: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()
"""By the module that a plugin is in. A process goes on with the code that it has imported,
whatever is written into the file afterwards."""


def planned_contents(configs: Iterable[RunConfig]) -> list[Contents]:
    """The contents of runs that are not trained by this process. Downloads nothing.

    Raises InputError when the data cannot be read.
    """
    tasks: dict[str, Task | None] = {}
    found = []
    for config in configs:
        data, paths = config.data.model_dump(mode="json"), config.plugins.search_paths
        key = json.dumps([data, paths, repr(needs_of(config))])
        if key not in tasks:
            here = not missing(config.data)
            tasks[key] = load_task(config) if here else None
        found.append(contents_of(config, tasks[key]))
    return found


def contents_of(config: RunConfig, task: Task | None) -> Contents:
    """The contents of one run.

    task: of `load_task`, before what does not fit the model is left out; None is not known yet.
    """
    paths, model = config.plugins.search_paths, config.model
    local = config.backend.backend == "local"
    adapter = Path(model.init_adapter) if local and model.init_adapter else None
    found = {
        "data": _data(config, task) if task is not None else "",
        "reward": _code(_reward_plugins(config), paths),
        "algorithm": _code(_algorithm_plugins(config), paths),
        "model": _model(model) if local else "",
        "init_adapter": _folder(adapter) if adapter else "",
    }
    return {name: digest for name, digest in found.items() if digest}


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:16])


def _data(config: RunConfig, task: Task) -> str:
    """Of a list of problems all of them; of an endless task some, or the code that makes them."""
    source = config.data.source
    if isinstance(task, ProblemListTask):
        return _problems(task.train, task.all_held_out)
    if "." in source:
        return _code([source], config.plugins.search_paths)
    return _problems(task.train_batch(0, 0, _PROBED), task.held_out(_PROBED))


def _problems(*sides: Sequence[Problem]) -> str:
    digest = hashlib.sha256()
    for side in sides:
        digest.update(b"%d\n" % len(side))
        for problem in side:
            fields = (problem.id, problem.prompt, problem.answer, problem.domain, problem.metadata)
            digest.update(json.dumps(fields, default=_plain).encode())
    return _short(digest)


def _plain(value: Any) -> Any:
    """What JSON has no word for: arrays as lists, others by their type alone."""
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def _reward_plugins(config: RunConfig) -> list[str]:
    rewards: list[RewardConfig | RewardComponentConfig] = [config.reward]
    rewards += config.reward.components
    return [f"{r.custom_module}.{r.custom_function}" for r in rewards if r.type == "custom"]


def _algorithm_plugins(config: RunConfig) -> list[str]:
    algorithm = config.algorithm
    return [
        name
        for name in (
            *(algorithm.advantage_mode, algorithm.transform_mode),
            *(algorithm.algorithm_mode, algorithm.uncertainty_kind),
        )
        if "." in name
    ]


def _code(plugins: Sequence[str], search_paths: Sequence[str]) -> str:
    """The sources of these dotted paths; empty for none, and for one that cannot be imported, which
    whoever uses it will say."""
    try:
        found = [_source(plugin, search_paths) for plugin in plugins]
    except PluginError:
        return ""
    return _short(hashlib.sha256("\n".join(found).encode())) if found else ""


def _source(plugin: str, search_paths: Sequence[str]) -> str:
    resolve(plugin, search_paths)
    name = plugin.rpartition(".")[0]
    module = sys.modules[name]
    if module not in _sources:
        digest = hashlib.sha256()
        for imported, source in sorted(_modules(name, module, search_paths).items()):
            digest.update(f"{imported} {len(source)}\n".encode() + source)
        _sources[module] = _short(digest)
    return _sources[module]


def _modules(name: str, module: ModuleType, search_paths: Sequence[str]) -> dict[str, bytes]:
    """The source of a module and of all that it imports from beside it, by their names.

    Beside it are its search paths and the folder that its package lies in; of what is installed
    only its own package.
    """
    roots = [str(expanded(folder).resolve()) for folder in search_paths]
    if file := getattr(module, "__file__", None):
        depth = name.count(".") + (Path(file).stem == "__init__")
        roots.append(str(Path(file).resolve().parents[depth]))
    found: dict[str, bytes] = {}
    todo = [name]
    while todo:
        wanted = todo.pop()
        path = file_of(roots, wanted)
        foreign = path is not None and {"site-packages", "dist-packages"} & set(path.parts)
        other = wanted.partition(".")[0] != name.partition(".")[0]
        if path is None or wanted in found or (foreign and other):
            continue
        found[wanted] = path.read_bytes()
        todo += _imports(found[wanted], wanted, is_package=path.stem == "__init__")
    return found


def _imports(source: bytes, name: str, *, is_package: bool) -> Iterator[str]:
    """Names of modules that a source may import; some are functions in one."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    # A module's packages are imported before it.
    wanted = [name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: None if is_package else -1]
            above = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            wanted += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for each in wanted:
        parts = each.strip(".").split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _model(model: ModelConfig) -> str:
    """The files of its folder; of a hub model that is on this machine the commit."""
    if model.model == EMBEDDED:
        from retrain.models.tiny import EMBEDDED_PATH

        return _folder(EMBEDDED_PATH)
    if Path(model.model).is_absolute():
        return _folder(Path(model.model))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model.model, "config.json", revision=model.revision or None)
    except HFValidationError:
        return ""
    return Path(cached).parent.name if isinstance(cached, str) else ""


def _folder(folder: Path) -> str:
    """Config, tokenizer, templates and weights of a folder; empty when there are none."""
    names = ("*", "additional_chat_templates/*")
    files = sorted(path for name in names for path in folder.glob(name))
    digest, any_file = hashlib.sha256(), False
    for path in files:
        if path.suffix in _OF_MODELS and path.is_file():
            stat = path.stat()
            content = _file(path.resolve(), stat.st_size, stat.st_mtime_ns)
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
            any_file = True
    return _short(digest) if any_file else ""


@cache
def _file(path: Path, size: int, changed_ns: int) -> str:
    """The bytes of a file; of one above `WHOLE_BYTES` its size, its first MiB (where a safetensors
    file has its header), and 64 blocks of 64 KiB that lie evenly in it. Training changes all of
    a weight; an edit of a few numbers between two blocks is not seen."""
    del changed_ns
    digest = hashlib.sha256(b"%d\n" % size)
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
            return _short(digest)
        digest.update(file.read(HEAD_BYTES))
        for index in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * (index + 1) // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return _short(digest)
