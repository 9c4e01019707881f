"""Adapters from the service as PEFT folders."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retrain.errors import InputError
from retrain.models.adapters.settings import ADAPTER_CONFIG
from retrain.models.adapters.tensors import PICKLES, pickle_error
from retrain.policies.tinker.paths import EXTERNAL, WEIGHTS, ServicePath

if TYPE_CHECKING:
    import httpx
    import tinker

    from retrain.policies.tinker.service import Service

_BLOCK = 1 << 20
_TIMEOUT_S = 60.0
_LONGEST_S = 3600.0
"""For one file: however slowly it drips in."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class DownloadError(InputError):
    """Weights that cannot be had from the service, or that are no PEFT adapter."""


def download_adapter(path: str, folder: Path, base_url: str = "") -> None:
    """Write the adapter at `path`, `tinker://<run>/weights/<name>` or one of `external_weights`,
    into `folder` in PEFT format. Weights to train on are loaded and saved anew for that.

    Raises InputError for a path, key or adapter that is wrong, ServiceLostError when the service
    is not there.
    """
    from retrain.policies.throttle import Throttle
    from retrain.policies.tinker.service import Service

    wanted = ServicePath.parse(path)
    with Service(base_url, Throttle(None, 1)) as service:
        if wanted.kind == WEIGHTS:
            client = service.training_client(
                lambda: service.client.create_training_client_from_state(path), path
            )
            wanted = ServicePath.parse(save_external(service, client, wanted.name))
        fetch(service, wanted, folder)


def save_external(service: Service, client: tinker.TrainingClient, name: str) -> str:
    """Have the service write the present weights in a form that others read -> their path."""
    saved = service.once("external weights", lambda: client.save_weights_external(name))
    return saved.path


def fetch(service: Service, path: ServicePath, folder: Path) -> None:
    """Download the files of `external_weights` into `folder`. Raises DownloadError for what is no
    PEFT adapter."""
    import httpx

    from retrain.policies.tinker.retry import GoneError

    assert path.kind == EXTERNAL
    try:
        answer = service.safely(
            "the addresses of the weights",
            lambda: service.rest.get_external_weights_urls(str(path)),
        )
    except GoneError as error:
        raise DownloadError(f"{path} is not at the service, or no longer") from error
    _check_names(answer.urls, path)
    folder.mkdir(parents=True, exist_ok=True)
    # The addresses are signed: the key stays here.
    try:
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
            for name, url in sorted(answer.urls.items()):
                _fetch_file(client, url, folder / name)
    except BaseException:
        # Half an adapter must not pass for one.
        for name in answer.urls:
            (folder / name).unlink(missing_ok=True)
        raise


def _fetch_file(client: httpx.Client, url: str, file: Path) -> None:
    import httpx

    # What else is written here needs room, too.
    most, latest = shutil.disk_usage(file.parent).free // 2, time.monotonic() + _LONGEST_S
    try:
        with client.stream("GET", url) as response:
            response.raise_for_status()
            with file.open("wb") as target:
                for block in response.iter_bytes(_BLOCK):
                    target.write(block)
                    if target.tell() > most:
                        raise DownloadError(f"{file.name} takes more than half of the disk's room")
                    if time.monotonic() > latest:
                        raise DownloadError(f"{file.name} is not here after {_LONGEST_S:g} s")
    except httpx.HTTPStatusError as error:
        # Not the error's own words: they hold the signed address.
        status = error.response.status_code
        raise DownloadError(f"{file.name} cannot be downloaded: status {status}") from None
    except httpx.HTTPError as error:
        kind = type(error).__name__
        raise DownloadError(f"{file.name} cannot be downloaded: {kind}") from None


def _check_names(urls: Mapping[str, str], path: ServicePath) -> None:
    for name in urls:
        if not _PLAIN_NAME.fullmatch(name):
            raise DownloadError(f"{path} holds a file {name!r}, which is no adapter's")
        if Path(name).suffix in PICKLES:
            raise DownloadError(str(pickle_error(f"{path}: {name}")))
    if ADAPTER_CONFIG not in urls:
        held = ", ".join(sorted(urls)) or "nothing"
        raise DownloadError(f"{path} is no adapter in PEFT format: it holds {held}")
