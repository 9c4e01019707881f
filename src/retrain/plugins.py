"""Dotted paths -> functions: how a name in a config becomes code.

A name without a dot is built in; a name with dots, `package.module.function`, is imported. The
folders in `[plugins].search_paths` are looked in after everything that is installed, so a
folder can add modules and never hide one: a plugin that is itself hidden by an installed module
is an error that says so. A worker process imports a plugin by calling `resolve` with the same
folders; nothing else has to be set up.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from retrain.files import expanded
from retrain.types import FloatArray

T = TypeVar("T")

_appended: list[str] = []
"""The folders that this module has put at the end of sys.path, and is answerable for."""


class PluginError(ValueError):
    """A plugin cannot be used; the message names it, what is wrong, and what is near."""


class Registry(dict[str, T]):
    """The built-in values of one config key by name; dotted paths beside them.

    `key` is the config key, as messages name it: `Registry("advantage_mode", grpo=grpo)`.
    """

    def __init__(self, key: str, /, **builtin: T) -> None:
        super().__init__(builtin)
        self.key = key

    def find(self, name: str, search_paths: Sequence[str | Path] = ()) -> T | Callable[..., Any]:
        """The built-in value called `name`, or the function at a dotted path.

        Raises PluginError for a name that is neither.
        """
        if name in self:
            return self[name]
        if "." in name:
            return resolve(name, search_paths)
        known = f"built in: {', '.join(self)}" if self else "nothing is built in"
        raise PluginError(
            f"unknown {self.key} {name!r}{did_you_mean(name, self)} "
            f"({known}; a plugin is a dotted path like my_module.my_function)"
        )

    def describe(self) -> dict[str, str]:
        """Name -> first line of its documentation, in the order of registration."""
        return {name: _first_line(value) for name, value in self.items()}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the nearest of the known names, '' when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def resolve(path: str, search_paths: Sequence[str | Path] = ()) -> Callable[..., Any]:
    """Import what a dotted path names.

    path:         `package.module.function`.
    search_paths: folders that modules may be imported from, besides what is installed; relative
                  ones are relative to the current folder. They replace those of the previous
                  call: what this process imported from a folder that is no longer listed is
                  forgotten, so that a module of the same name elsewhere is not mistaken for it.

    Raises PluginError: a folder or module that does not exist, a module that fails to import
    or is hidden by another of the same name, an attribute that is missing or not callable.
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise PluginError(f"{path!r} is no dotted path like my_module.my_function")
    folders = _folders(path, search_paths)
    _put_on_path(folders)
    module = _import(path, module_name, folders)
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value)]
        raise PluginError(
            f"{path}: module {module_name} ({_origin(module)}) has no {attribute!r}"
            f"{did_you_mean(attribute, public)}"
        )
    found = getattr(module, attribute)
    if not callable(found):
        raise PluginError(f"{path} is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def positional_arguments(function: Callable[..., Any], path: str) -> list[inspect.Parameter]:
    """The parameters that a positional call can fill, `*args` included.

    Raises PluginError when there is no signature to look at, or a keyword-only argument is
    required, which no caller here could know to give.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise PluginError(f"{path}: its arguments cannot be read; wrap it in a function") from error
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise PluginError(
                f"{path}: requires the keyword argument {parameter.name!r}; "
                "give it a default or make it positional"
            )
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return [parameter for parameter in parameters if parameter.kind not in keyword]


def call(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a plugin; whatever it raises becomes a PluginError that names it."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{path} raised {type(error).__name__}: {error}") from error


def as_array(path: str, result: Any, shape: tuple[int, ...], meaning: str) -> FloatArray:
    """What a plugin returned, as float64 of the expected shape; PluginError otherwise."""
    expected = f"expected shape {shape}, {meaning}"
    # numpy would read None as NaN; a forgotten `return` deserves a plainer message.
    if result is None:
        raise PluginError(f"{path} returned None; {expected}")
    try:
        array = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{path} returned {type(result).__name__}, not an array of numbers; {expected}"
        ) from error
    if array.shape != shape:
        raise PluginError(f"{path} returned shape {array.shape}; {expected}")
    return array


def own_import_path() -> list[str]:
    """sys.path without the folders that were added for plugins."""
    return [folder for folder in sys.path if folder not in _appended]


def _folders(path: str, search_paths: Sequence[str | Path]) -> list[str]:
    folders = [expanded(folder).resolve() for folder in search_paths]
    for given, folder in zip(search_paths, folders, strict=True):
        if not folder.is_dir():
            raise PluginError(f"{path}: the search path {str(given)!r} is no folder ({folder})")
    return [str(folder) for folder in folders]


def _put_on_path(folders: list[str]) -> None:
    """Make sys.path end with the folders, and forget modules of folders no longer listed."""
    gone = {folder for folder in _appended if folder not in folders}
    for name in {name.partition(".")[0] for name in sys.modules}:
        if _home(sys.modules.get(name)) in gone:
            for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[loaded]
    for folder in _appended:
        if folder in sys.path:
            sys.path.remove(folder)
    there = {str(Path(entry or ".").resolve()) for entry in sys.path}
    _appended[:] = [folder for folder in dict.fromkeys(folders) if folder not in there]
    sys.path.extend(_appended)
    # A file written a moment ago is invisible to the import system's cached folder listings.
    importlib.invalidate_caches()


def _home(module: ModuleType | None) -> str | None:
    """The folder that a top-level module was imported from."""
    spec = getattr(module, "__spec__", None)
    places = [*(getattr(spec, "submodule_search_locations", None) or ())]
    place = places[0] if places else getattr(spec, "origin", None)
    return str(Path(place).parent) if isinstance(place, str) else None


def _import(path: str, module_name: str, folders: list[str]) -> ModuleType:
    # What it may read of a command line is not ours.
    arguments, sys.argv = sys.argv, [module_name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(missing + "."):
            raise PluginError(
                f"{path}: importing {module_name} failed: it imports {missing!r}, "
                "which is not installed"
            ) from error
        raise PluginError(_not_found(path, missing, folders)) from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{path}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.argv = arguments
    mine = file_of(folders, module_name)
    if mine is not None and Path(_origin(module)).resolve() != mine.resolve():
        raise PluginError(
            f"{path}: {mine} is hidden by another module {module_name} ({_origin(module)}); "
            "rename yours"
        )
    return module


def _not_found(path: str, missing: str, folders: list[str]) -> str:
    parent, _, name = missing.rpartition(".")
    if parent:
        package = sys.modules.get(parent)
        places = list(getattr(package, "__path__", []))
        where = f"in {_origin(package)}" if places else f"because {parent} is not a package"
    else:
        places = folders
        where = f"in {', '.join(folders)} or" if folders else "in"
        where += " what is installed ([plugins].search_paths lists folders to look in)"
    near = did_you_mean(name, (module.name for module in pkgutil.iter_modules(places)))
    return f"{path}: there is no module {missing!r} {where}{near}"


def file_of(folders: Sequence[str], module_name: str) -> Path | None:
    """The source of a module in the first of these folders that has it."""
    for folder in folders:
        base = Path(folder).joinpath(*module_name.split("."))
        for file in (base / "__init__.py", base.with_name(base.name + ".py")):
            if file.is_file():
                return file
    return None


def _origin(module: ModuleType | None) -> str:
    return str(getattr(module, "__file__", None) or getattr(module, "__name__", module))


def _first_line(value: object) -> str:
    documentation = inspect.getdoc(getattr(value, "fn", value)) or ""
    return documentation.partition("\n")[0]
