"""Adapters in archives, unpacked so that nothing can land outside the folder meant for them.

Every member is checked before the first byte is written. Only regular files that an adapter can
consist of are unpacked, without owners, modes or times.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from retrain.errors import InputError

_WANTED = {".json", ".safetensors", ".bin"}
"""A `.bin` is unpacked so that the message can say what is wrong with it."""

_SMALL, _RATIO = 1 << 30, 20
"""Weights hardly shrink when they are packed: what grows to more bytes than the one, and to more
times its size than the other, is no adapter."""

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A temporary folder with an archive's files: `.tar` (also compressed) or `.zip`.

    Raises InputError when it is no such archive, is damaged, unpacks to far more than its own size
    or than the disk holds, or has a member that points outside (absolute, `..`) or is no regular
    file (a link, a device).
    """
    with tempfile.TemporaryDirectory(prefix="retrain_squeeze_") as name:
        folder = Path(name)
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as zipped:
                    _unpack_zip(zipped, archive, folder)
            elif tarfile.is_tarfile(archive):
                with tarfile.open(archive, mode="r:*") as tar:
                    _unpack_tar(tar, archive, folder)
            else:
                raise InputError(
                    f"{archive} holds no adapter: it is neither a folder, a .safetensors file, "
                    "a .zip nor a .tar"
                )
        except _DAMAGED as error:
            raise InputError(
                f"{archive} cannot be unpacked: {error}; download or pack it again"
            ) from error
        yield folder


def _unpack_zip(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    members: list[tuple[zipfile.ZipInfo, Path]] = []
    size = 0
    for info in archive.infolist():
        size += info.file_size
        _check_size(path, size, folder)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _not_a_file(path, info.filename)
        target = _target(path, info.filename, folder)
        if info.flag_bits & 1:
            raise InputError(f"{path}: {info.filename} is encrypted; unpack it yourself")
        if not info.is_dir() and target.suffix in _WANTED:
            members.append((info, target))
    for info, target in members:
        with archive.open(info) as source:
            _write(source, target)


def _unpack_tar(archive: tarfile.TarFile, path: Path, folder: Path) -> None:
    members: list[tuple[tarfile.TarInfo, Path]] = []
    size = 0
    for info in archive:
        size += info.size
        _check_size(path, size, folder)
        if not (info.isreg() or info.isdir()):
            raise _not_a_file(path, info.name)
        target = _target(path, info.name, folder)
        if info.isreg() and target.suffix in _WANTED:
            members.append((info, target))
    for info, target in members:
        source = archive.extractfile(info)
        assert source is not None, "a regular file"
        with source:
            _write(source, target)


def _target(archive: Path, name: str, folder: Path) -> Path:
    """Where a member goes. A drive or a backslash is refused too, for those who read it later."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or ":" in name:
        raise InputError(
            f"{archive}: the member {name!r} points outside the archive; do not trust this file"
        )
    return folder.joinpath(*parts)


def _not_a_file(archive: Path, name: str) -> InputError:
    return InputError(
        f"{archive}: the member {name!r} is a link or a device, which an adapter has no use for; "
        "pack the files themselves"
    )


def _check_size(archive: Path, size: int, folder: Path) -> None:
    packed = archive.stat().st_size
    if size > max(_SMALL, _RATIO * packed):
        raise InputError(
            f"{archive} of {packed / 1e6:.1f} MB unpacks to {size / 1e9:.1f} GB or more, which no "
            "adapter does; unpack it yourself where you trust it"
        )
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"{archive} unpacks to {size / 1e9:.1f} GB, but {folder.parent} has {free / 1e9:.1f} "
            "GB free; set TMPDIR to a larger disk"
        )


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # "x": of two members with one name, neither may replace the other.
    with target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
