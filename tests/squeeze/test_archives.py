"""Archives: what is in them, and what they must not be able to do."""

from __future__ import annotations

import io
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retrain.errors import InputError
from retrain.models.adapters.archive import unpacked
from retrain.squeeze import analyze_adapter, compress_adapter
from tests.squeeze.adapters import random_factors, write_adapter

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "source", random_factors())


def pack(folder: Path, archive: Path, inside: str) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name in FILES:
                zipped.write(folder / name, f"{inside}{name}")
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as tar:
            for name in FILES:
                tar.add(folder / name, f"{inside}{name}")
    return archive


@pytest.mark.parametrize("inside", ["", "./", "final/", "runs/a/final/"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip", "no_suffix"])
def test_an_archive_is_as_good_as_its_folder(
    folder: Path, tmp_path: Path, name: str, inside: str
) -> None:
    archive = pack(folder, tmp_path / name, inside)
    packed, plain = analyze_adapter(archive), analyze_adapter(folder)
    assert packed.mean_variance == plain.mean_variance
    assert str(archive) in packed.adapter
    result = compress_adapter(archive, tmp_path / "output", rank=2)
    same = compress_adapter(folder, tmp_path / "same", rank=2)
    for file in FILES:
        left, right = result.output_path / file, same.output_path / file
        assert left.read_bytes() == right.read_bytes()


def test_nothing_is_left_in_the_temporary_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    analyze_adapter(pack(folder, tmp_path / "a.tar", ""))
    assert not list((tmp_path / "temporary").iterdir())


def tar_with(archive: Path, change: Callable[[tarfile.TarInfo], None]) -> None:
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("adapter_config.json")
        info.size = 2
        change(info)
        tar.addfile(info, io.BytesIO(b"{}") if info.isreg() else None)


@pytest.mark.parametrize(
    "name", ["../evil.json", "/tmp/evil.json", "a/../../evil.json", "..\\evil.json", "C:/evil.json"]
)
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str, suffix: str) -> None:
    archive = tmp_path / f"inner/evil{suffix}"
    archive.parent.mkdir()
    if suffix == ".tar":
        tar_with(archive, lambda info: setattr(info, "name", name))
    else:
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr(name, "{}")
    with pytest.raises(InputError, match="points outside the archive"):
        analyze_adapter(archive)
    assert not list(tmp_path.rglob("evil.json"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_no_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "evil.tar"

    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    tar_with(archive, change)
    with pytest.raises(InputError, match="is a link or a device"):
        analyze_adapter(archive)


def test_no_links_in_a_zip(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    info = zipfile.ZipInfo("adapter_config.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="is a link or a device"):
        analyze_adapter(archive)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("adapter_model.safetensors")
        info.size = 1 << 60
        archive.write_bytes(b"")
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"unpacks to|cannot be unpacked"):
        analyze_adapter(archive)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_what_grows_beyond_measure_is_not_unpacked(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrain.models.adapters.archive._SMALL", 1 << 20)
    (tmp_path / "source").mkdir()
    for name in FILES:
        (tmp_path / "source" / name).write_bytes(bytes(1 << 20))
    archive = pack(tmp_path / "source", tmp_path / f"bomb{suffix}", "")
    with pytest.raises(InputError, match=r"bomb.* of 0\.0 MB unpacks to 0\.0 GB or more"):
        analyze_adapter(archive)


def test_two_members_with_one_name(tmp_path: Path) -> None:
    archive = tmp_path / "twice.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("adapter_config.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            zipped.writestr("adapter_config.json", "[]")
    with pytest.raises(InputError, match="cannot be unpacked"):
        analyze_adapter(archive)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "a.tar"])
def test_half_an_archive(folder: Path, tmp_path: Path, name: str) -> None:
    archive = pack(folder, tmp_path / name, "")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(InputError, match=str(archive)):
        analyze_adapter(archive)


def test_only_what_an_adapter_consists_of_is_unpacked(folder: Path, tmp_path: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"large")
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "final")
    with unpacked(archive) as inside:
        assert sorted(path.name for path in inside.rglob("*") if path.is_file()) == sorted(FILES)
    assert not inside.exists()


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="neither a folder"):
        analyze_adapter(tmp_path / "notes.txt")
