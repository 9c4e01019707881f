"""Starts SGLang where there is no GPU: `launch.py OPTIONS OF sglang.launch_server`.

Of its packages for GPUs three things are asked for on the way that a plain text model needs
nothing of; they are stood in for here, and by the module `sgl_kernel` beside this file. Processes
that it spawns run this file anew.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch

# torchvision is imported whatever the model is; its compiled operators want CUDA.
sys.modules.setdefault(
    "torchvision._meta_registrations", ModuleType("torchvision._meta_registrations")
)


def unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """SGLang's LoRA pins memory without asking for what device."""

    @wraps(make)
    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        del pin_memory
        return make(*args, **kwargs)

    return made


for name in ("tensor", "empty", "zeros", "ones", "arange", "full"):
    setattr(torch, name, unpinned(getattr(torch, name)))
torch.Tensor.pin_memory = lambda self, *args, **kwargs: self  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.argv[0] = "sglang.launch_server"
    runpy.run_module("sglang.launch_server", run_name="__main__")
