"""What a model's folder says of itself, read without torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from retrain.config.load import EMBEDDED, is_folder_name
from retrain.config.schema import ModelConfig, RunConfig
from retrain.errors import InputError
from retrain.files import lfs_pointer
from retrain.models.adapters.tensors import PICKLES, pickle_error
from retrain.models.shape import (
    ModelShape,
    context_of,
    refused,
    vocabulary_of,
    weight_shapes,
    weights_problem,
)
from retrain.models.weight_names import header_problem
from retrain.types import Problem

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_ENCODED_AT_ONCE = 256
RUNS_CODE = (
    "brings code of its own (auto_map), which retrain does not run; take a model that transformers "
    "knows itself"
)


@dataclass(frozen=True)
class ModelFolder:
    """A base model as far as its files tell.

    path:     its folder; None for a hub model that is not on this machine yet.
    context:  tokens of prompt and completion together; None when unknown.
    problems: why it cannot be trained.
    config:   `config.json`; empty when unknown.
    """

    path: Path | None
    context: int | None
    problems: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _encode: Callable[[Iterable[str]], list[int]] | None = field(default=None, repr=False)
    _render: Callable[[Problem], str] | None = field(default=None, repr=False)

    @property
    def shape(self) -> ModelShape | None:
        """How large it is; None when the folder does not tell."""
        if self.path is None or not self.config:
            return None
        return ModelShape.of(self.config, weight_shapes(self.path))

    def rendering(self, model: ModelConfig) -> ModelFolder:
        """The same folder, prompts made as `[model]` says."""
        if self.path is None:
            return self
        return replace(self, _render=_renderer(self.path, model))

    def prompt_tokens(self, problem: Problem) -> int | None:
        """Tokens of the problem as a prompt; None when the folder does not allow to count."""
        counted = self.prompt_tokens_batch([problem])
        return None if counted is None else counted[0]

    def prompt_tokens_batch(self, problems: Sequence[Problem]) -> list[int] | None:
        """`prompt_tokens` of many problems at once; None when they cannot be counted."""
        if self._encode is None or self._render is None:
            return None
        return self._encode(map(self._render, problems))


def inspect(model: ModelConfig, base_dir: Path) -> ModelFolder:
    """Look at a run's `[model]`."""
    return inspect_model(model.model, base_dir, model.revision).rendering(model)


def dated(run: RunConfig, base_dir: Path, day: str | None = None) -> RunConfig:
    """`run` with the day that its chat template is told; unchanged when the template does not ask.

    day: that on which the run began; today by default.
    """
    model = run.model
    path = inspect_model(model.model, base_dir, model.revision).path
    # What is not here yet may ask.
    asks = path is None or "strftime_now" in (template_variables(path, model.chat_template) or ())
    if model.chat_template_date or not asks:
        return run
    day = date.today().isoformat() if day is None else day
    model = model.model_copy(update={"chat_template_date": day})
    return run.model_copy(update={"model": model})


@cache
def inspect_model(name: str, base_dir: Path, revision: str = "") -> ModelFolder:
    """Look at `[model].model`: `embedded`, an absolute folder, or a hub id."""
    if name == EMBEDDED:
        from retrain.models.tiny import EMBEDDED_PATH

        return _inspect(EMBEDDED_PATH)
    if is_folder_name(name, base_dir):
        return _inspect(Path(name))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except HFValidationError:
        problem = f'"{name}" is neither "embedded", nor a folder, nor a hub id like org/name'
        return ModelFolder(None, None, (problem,))
    if not isinstance(cached, str):
        return ModelFolder(None, None)
    # A download may be partial, and the worker completes it.
    folder = _inspect(Path(cached).parent)
    return replace(folder, problems=_of_type(folder.config))


def _inspect(path: Path) -> ModelFolder:
    if not path.is_dir():
        return ModelFolder(path, None, (f"there is no folder {path}",))
    problems = list(_damage(path))
    if problems:
        return ModelFolder(path, None, tuple(problems))
    config = _read_json(path / "config.json")
    if config is None:
        hint = _below(path)
        problems.append(f"{path} holds no model: config.json is missing or damaged{hint}")
        return ModelFolder(path, None, tuple(problems))
    problems += _of_type(config)
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        problems.append(f"{path} has no tokenizer (tokenizer.json)")
    elif not chat_templates(path):
        problems.append(
            f"{path} has no chat template; add chat_template.jinja, or use the model's "
            "instruction-tuned version"
        )
    if _runs_code(path, config):
        problems.append(f"{path} {RUNS_CODE}")
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if any(path.glob("*.safetensors")):
        if problem := header_problem(config, weight_shapes(path)):
            problems.append(f"{path} {problem}")
    elif pickles:
        problems.append(str(pickle_error(str(path / pickles[0]))))
    else:
        adapter = (path / "adapter_config.json").is_file()
        hint = "; it is a LoRA adapter, name the base model" if adapter else ""
        problems.append(f"{path} has no weights (*.safetensors){hint}")
    context, encode = context_of(config), _encoder(path, vocabulary_of(config))
    folder = ModelFolder(path, context, tuple(problems), config, encode)
    return folder.rendering(ModelConfig())


def _damage(path: Path) -> Iterator[str]:
    """What is wrong with the files that a model is loaded from."""
    weights = sorted(path.glob("model*.safetensors"))
    loaded = weights or sorted(path.glob("pytorch_model*.bin"))
    for file in (path / "config.json", *(path / name for name in TOKENIZER_FILES), *loaded):
        if pointer := lfs_pointer(file):
            yield pointer
        elif file in weights and (problem := weights_problem(file)):
            yield problem


def _of_type(config: Mapping[str, Any]) -> tuple[str, ...]:
    problem = refused(config)
    return (problem,) if problem else ()


def _runs_code(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether model or tokenizer need code of the folder, as transformers has none for them."""
    tokenizer = _read_json(path / "tokenizer_config.json") or {}
    return any(
        bool(values.get("auto_map")) and not _is_known(str(values.get(kind)))
        for values, kind in ((config, "model_type"), (tokenizer, "tokenizer_class"))
    )


@cache
def _is_known(kind: str) -> bool:
    """Whether transformers' lists have a model type or a tokenizer; to import it takes seconds."""
    found = find_spec("transformers")
    places = (found and found.submodule_search_locations) or ()
    files = [file for place in places for file in Path(place).glob("models/auto/*.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    return any(f'"{name}"' in text for name in (kind, kind.removesuffix("Fast")))


def _below(path: Path) -> str:
    inner = sorted(file.parent.name for file in path.glob("*/config.json"))
    if (path / "adapter_config.json").is_file():
        return "; it is a LoRA adapter, name the base model"
    return f"; did you mean {path / inner[0]}?" if inner else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def chat_templates(path: Path) -> dict[str, str]:
    """The chat templates of a folder by their names, of which one is mostly `default`."""
    written = (_read_json(path / "tokenizer_config.json") or {}).get("chat_template")
    found: dict[str, str] = {}
    match written:
        case str():
            found["default"] = written
        case list():
            # As older models have several.
            with contextlib.suppress(KeyError, TypeError):
                found |= {str(each["name"]): str(each["template"]) for each in written}
    files = {"default": path / "chat_template.jinja"}
    files |= {file.stem: file for file in (path / "additional_chat_templates").glob("*.jinja")}
    # Files come before what the tokenizer's config holds, and make it void.
    texts = {name: _read_text(file) for name, file in files.items()}
    beside = {name: text for name, text in texts.items() if text is not None}
    return beside or found


def unknown_template(where: str, name: str, known: Iterable[str]) -> str:
    """That there is no chat template of this name."""
    names = sorted(known)
    remedy = f'write chat_template = "{names[0]}" or another of them in [model]'
    return f"model.chat_template: {where} has no {name!r} but {', '.join(names)}; {remedy}"


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _encoder(path: Path, vocabulary: int | None) -> Callable[[Iterable[str]], list[int]] | None:
    if not (path / "tokenizer.json").is_file():
        return None

    def encode(texts: Iterable[str]) -> list[int]:
        lengths: list[int] = []
        rest = iter(texts)
        # What the library makes of a text takes many times its size.
        while some := list(islice(rest, _ENCODED_AT_ONCE)):
            encoded = tokenizer().encode_batch_fast(some, add_special_tokens=False)
            for encoding in encoded:
                check_ids(encoding.ids, vocabulary, tokenizer().id_to_token)
            lengths += [len(encoding.ids) for encoding in encoded]
        return lengths

    @cache
    def tokenizer() -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path / "tokenizer.json"))

    return encode


def check_ids(
    ids: Sequence[int], vocabulary: int | None, name_of: Callable[[int], str | None]
) -> None:
    """Raise InputError for a prompt with a token that the model has no embedding of."""
    if vocabulary is not None and ids and (worst := max(ids)) >= vocabulary:
        raise InputError(
            f"model.model: the prompts hold the token {worst} ({name_of(worst)!r}), and the model "
            f"has embeddings of {vocabulary} tokens only: the tokenizer or its chat template is "
            "another model's; take the one that the model was trained with"
        )


def template_variables(path: Path, name: str) -> set[str] | None:
    """What the folder's chat template of this name can be told, `messages` and the like among it;
    None without a template that can be read."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        tree = ImmutableSandboxedEnvironment(extensions=_EXTENSIONS).parse(
            chat_templates(path).get(name, "")
        )
    except TemplateError:
        return None
    return set(meta.find_undeclared_variables(tree))


def on_day(template: str, day: str) -> str:
    """A chat template for which time stands still: one that calls `strftime_now` has a macro of
    that name, as newer transformers hand no function to a template.

    day: ISO; empty for today.
    """
    if "strftime_now" not in template:
        return template
    now = datetime.fromisoformat(day) if day else datetime.now()
    forms = [f"%{flag}{letter}" for letter in "aAbBcdHIjmMpSuUVwWxXyYGZz" for flag in ("-", "")]
    changes = "".join(f"|replace({form!r}, {now.strftime(form)!r})" for form in forms)
    macro = "{% macro strftime_now(form) %}{{ form" + changes + " }}{% endmacro %}{{ '' }}"
    return macro + template


_EXTENSIONS = ["jinja2.ext.loopcontrols"]


def _renderer(path: Path, model: ModelConfig) -> Callable[[Problem], str]:
    """Prompt text through the chat template; without one that works, the bare messages."""

    @cache
    def template() -> Any:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=_EXTENSIONS
        )
        text = chat_templates(path).get(model.chat_template, "")
        return environment.from_string(on_day(text, model.chat_template_date))

    def render(problem: Problem) -> str:
        bare = "".join(message["content"] for message in problem.messages)
        try:
            text = template().render(
                messages=problem.messages, add_generation_prompt=True, **model.chat_template_args
            )
        except Exception:
            # Templates may use extensions that only transformers provides; a count of the bare
            # messages is then still a lower bound.
            return bare
        return str(text) or bare

    return render
