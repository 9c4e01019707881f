"""Dotted paths: what is found, what is refused and how, and what sys.path looks like after."""

import subprocess
import sys

import pytest

from retrain import plugins
from retrain.plugins import PluginError, Registry, as_array, own_import_path, resolve


@pytest.fixture(autouse=True)
def _no_folders_left():
    yield
    plugins._put_on_path([])


@pytest.fixture
def folder(tmp_path):
    """A folder with a module and a package."""
    (tmp_path / "mine_flat.py").write_text("VALUE = 3\ndef double(x):\n    return 2 * x\n")
    package = tmp_path / "mine_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def triple(x):\n    return 3 * x\n")
    return tmp_path


def message(path, *search_paths):
    with pytest.raises(PluginError) as caught:
        resolve(path, search_paths)
    return str(caught.value)


def test_a_module_a_package_and_what_is_installed(folder):
    assert resolve("mine_flat.double", [folder])(4) == 8
    assert resolve("mine_package.inner.triple", [str(folder)])(4) == 12
    assert resolve("retrain.advantages.episode.grpo").__name__ == "grpo"


def test_relative_search_paths(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve("mine_flat.double", [folder.name])(4) == 8


def test_a_plugin_may_import_its_neighbours_even_late(folder):
    (folder / "mine_late.py").write_text(
        "def f():\n    import mine_flat\n    return mine_flat.VALUE\n"
    )
    assert resolve("mine_late.f", [folder])() == 3


def test_another_process_imports_it_the_same_way(folder):
    call = f"resolve('mine_flat.double', [{str(folder)!r}])(5)"
    code = f"from retrain.plugins import resolve; print({call})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "10\n"


def test_folders_come_last_and_leave_when_they_are_no_longer_listed(folder):
    before = own_import_path()
    resolve("mine_flat.double", [folder, folder])
    assert sys.path == [*before, str(folder)]
    resolve("mine_flat.double", [folder])
    assert sys.path == [*before, str(folder)]
    resolve("retrain.advantages.episode.grpo")
    assert sys.path == before
    assert "mine_flat" not in sys.modules


def test_a_folder_that_was_on_the_path_stays_where_it_was(folder, monkeypatch):
    (folder / "mine_on_the_path.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(folder))
    before = own_import_path()
    assert resolve("mine_on_the_path.f", [folder])() == 1
    resolve("retrain.advantages.episode.grpo")
    assert sys.path == before


@pytest.mark.parametrize("module", ["mine_twin", "mine_spread.inner", "mine_whole.inner"])
def test_modules_of_the_same_name_in_two_folders(tmp_path, module):
    found = []
    for name in ("one", "two"):
        file = tmp_path / name / (module.replace(".", "/") + ".py")
        file.parent.mkdir(parents=True)
        file.write_text(f"def f():\n    return {name!r}\n")
        if "whole" in module:
            (file.parent / "__init__.py").write_text("")
        found.append(resolve(f"{module}.f", [tmp_path / name]))
    # The first one is not disturbed by the second.
    assert [f() for f in found] == ["one", "two"]


def test_a_folder_cannot_hide_what_is_installed(folder):
    (folder / "json.py").write_text("def loads(x):\n    return 'mine'\n")
    said = message("json.loads", folder)
    assert f"{folder / 'json.py'} is hidden by another module json" in said
    assert said.endswith("rename yours")


def test_missing_modules(folder):
    assert "there is no module 'mine_flst'" in message("mine_flst.double", folder)
    assert message("mine_flst.double", folder).endswith("did you mean mine_flat?")
    assert "[plugins].search_paths" in message("mine_flat_elsewhere.f")
    assert message("mine_package.iner.f", folder).endswith("did you mean inner?")
    assert "because mine_flat is not a package" in message("mine_flat.double.f", folder)


def test_missing_attributes(folder):
    said = message("mine_flat.duoble", folder)
    assert "has no 'duoble'; did you mean double?" in said
    assert str(folder / "mine_flat.py") in said


def test_what_cannot_be_called(folder):
    assert message("mine_flat.VALUE", folder) == "mine_flat.VALUE is int, not a function"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_library_x\n", "it imports 'no_such_library_x', which is not installed"),
        ("def f(:\n", "importing mine_broken failed: SyntaxError"),
        ("raise RuntimeError('no')\n", "importing mine_broken failed: RuntimeError: no"),
        ("from math import nothing\n", "importing mine_broken failed: ImportError"),
        ("import sys\nsys.exit(0)\n", "importing mine_broken failed: SystemExit: 0"),
    ],
)
def test_modules_that_fail_to_import(folder, source, expected):
    (folder / "mine_broken.py").write_text(source)
    assert expected in message("mine_broken.f", folder)


def test_a_module_does_not_see_our_command_line(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["retrain", "explain", "x.toml"])
    source = "import argparse\nP = argparse.ArgumentParser()\nP.add_argument('--n', default=3)\n"
    (folder / "mine_args.py").write_text(source + "N = P.parse_args().n\ndef f():\n    return N\n")
    assert resolve("mine_args.f", [folder])() == 3
    assert sys.argv == ["retrain", "explain", "x.toml"]


def test_a_function_that_leaves_the_program_has_failed():
    with pytest.raises(PluginError, match=r"mine\.f raised SystemExit: 0"):
        plugins.call("mine.f", sys.exit, 0)


@pytest.mark.parametrize("path", ["f", "a..f", ".f", "a.", "my-module.f", "a:f", "a.b:f", ""])
def test_what_is_no_dotted_path(path):
    assert "is no dotted path like my_module.my_function" in message(path)


def test_search_paths_that_are_no_folders(folder):
    said = message("mine_flat.double", folder / "nowhere")
    assert "is no folder" in said
    assert "nowhere" in said


def test_registry():
    def near():
        """What near does.

        More of it.
        """

    registry = Registry("some_mode", near=near, far=len)
    assert registry.find("near") is near
    assert registry.find("math.sqrt")(4) == 2
    assert registry.describe()["near"] == "What near does."
    with pytest.raises(PluginError) as caught:
        registry.find("naer")
    assert str(caught.value) == (
        "unknown some_mode 'naer'; did you mean near? "
        "(built in: near, far; a plugin is a dotted path like my_module.my_function)"
    )


def test_as_array():
    assert as_array("p.f", [1, 2], (2,), "one a row").dtype == "float64"
    with pytest.raises(
        PluginError, match=r"p\.f returned shape \(1,\); expected shape \(2,\), one"
    ):
        as_array("p.f", [1], (2,), "one a row")


def test_importing_the_advantages_imports_no_torch():
    code = (
        "import sys, retrain.plugins, retrain.advantages.credit, retrain.advantages.sepa;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
