"""Any Hugging Face causal LM through its own module, the adapter added as low-rank side products.

The base weights stay as they are, in any dtype; the adapter's share of a layer's output is computed
in the same, from float32 masters. Slower than the functional engines, which know only Llama-like
models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retrain.models.engine import Cache, Prompts, Rows, pad_ids
from retrain.models.head import Head, head_logprobs, token_logprobs
from retrain.models.lora import LoraAdapter, target_modules
from retrain.models.shape import EngineKind
from retrain.types import IntArray

_Leaves = dict[str, tuple[Tensor, Tensor]]


@dataclass(slots=True)
class ModuleCache:
    """The module's own cache; mask (rows, tokens so far); positions (rows,) of the next token."""

    inner: Any
    mask: Tensor
    positions: Tensor

    def select(self, index: Tensor) -> None:
        self.inner.batch_select_indices(index)
        self.mask = self.mask.index_select(0, index)
        self.positions = self.positions.index_select(0, index)


@dataclass(frozen=True, slots=True)
class ModulePrompts:
    """Token ids of prompts and their mask, (prompts, tokens), left-padded."""

    ids: Tensor
    mask: Tensor


class ModuleEngine:
    """Runs the module; forward hooks add the adapter that the current session names."""

    kind: EngineKind = "modules"
    rows_hold_prompts = True
    refills = False

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.device: torch.device = next(module.parameters()).device
        self.head = _plain_head(self.module, self.device)
        self._active: tuple[_Leaves, float] | None = None
        for name, layer in target_modules(module, "all-linear").items():
            layer.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def add_adapter(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._active is None or name not in self._active[0]:
                return output
            leaves, scale = self._active
            a, b = leaves[name]
            x = args[0]
            side = F.linear(F.linear(x, a.to(x.dtype)), (scale * b).to(x.dtype))
            return output + side

        return add_adapter

    @contextmanager
    def using(self, leaves: _Leaves, scale: float) -> Iterator[None]:
        """The adapter's factors for calls of the module inside this block."""
        before, self._active = self._active, (leaves, scale)
        try:
            yield
        finally:
            self._active = before

    def session(
        self, adapter: LoraAdapter | None, train: bool = False, checkpointing: bool = False
    ) -> ModuleSession:
        session = ModuleSession(self, adapter, train)
        _set_checkpointing(self.module, session.recomputed if train and checkpointing else None)
        return session


@dataclass(slots=True)
class ModuleSession:
    """The engine with one adapter's factors.

    In training they are leaves whose gradients accumulate straight into `adapter.grads`.
    """

    engine: ModuleEngine
    adapter: LoraAdapter | None
    train: bool
    leaves: _Leaves = field(init=False)

    def __post_init__(self) -> None:
        self.leaves = {}
        factors = {} if self.adapter is None else self.adapter.factors
        for name, f in factors.items():
            a, b = f.a.detach(), f.b.detach()
            if self.train:
                a.requires_grad_()
                b.requires_grad_()
                a.grad, b.grad = f.grad_a, f.grad_b
            self.leaves[name] = (a, b)

    @property
    def scale(self) -> float:
        return 0.0 if self.adapter is None else self.adapter.spec.scale

    def recomputed(self, layer: Callable[..., Any], *args: Any) -> Any:
        """A layer whose activations are computed again in the backward pass, with this adapter."""
        return checkpoint(
            layer,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), self.engine.using(self.leaves, self.scale)),
        )

    def finish(self) -> None:
        """Nothing is missing: backward passes wrote into `adapter.grads`."""

    def _call(self, only_base: bool = False, **inputs: Any) -> Any:
        module = self.engine.module.base_model if only_base else self.engine.module
        with (
            self.engine.using(self.leaves, self.scale),
            nullcontext() if self.train else torch.no_grad(),
        ):
            return module(**inputs)

    def prefill(self, prompts: Sequence[IntArray], room: int) -> tuple[Cache, Tensor]:
        del room  # the module's cache grows as it is needed
        ids, mask = pad_ids(prompts, self.engine.device, left=True)
        out = self._call(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=True,
            logits_to_keep=1,
        )
        cache = ModuleCache(out.past_key_values, mask, mask.sum(1))
        return cache, out.logits[:, -1].float()

    def decode(self, cache: Cache, token_ids: Tensor) -> Tensor:
        assert isinstance(cache, ModuleCache)
        cache.mask = F.pad(cache.mask, (0, 1), value=True)
        out = self._call(
            input_ids=token_ids[:, None],
            attention_mask=cache.mask.long(),
            position_ids=cache.positions[:, None],
            past_key_values=cache.inner,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.positions = cache.positions + 1
        return torch.as_tensor(out.logits[:, -1].float())

    def prompts(self, prompts: Sequence[IntArray]) -> ModulePrompts:
        return ModulePrompts(*pad_ids(prompts, self.engine.device, left=True))

    def logprobs(self, prompts: Prompts, rows: Rows, temperature: float) -> Tensor:
        assert isinstance(prompts, ModulePrompts)
        r, t = rows.token_ids.shape
        # Prompts end, and completions begin, at the same column in every row, so that the head
        # runs on the last t + 1 columns only.
        ids = torch.cat([prompts.ids[rows.prompt_index], rows.token_ids], 1)
        mask = torch.cat([prompts.mask[rows.prompt_index], rows.mask], 1)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
            "use_cache": False,
        }
        token_ids, head = rows.token_ids[rows.mask], self.engine.head
        if head is None:
            logits = self._call(**inputs, logits_to_keep=t + 1).logits[:, :-1][rows.mask]
            found = token_logprobs(logits, token_ids, temperature)
        else:
            hidden = self._call(only_base=True, **inputs).last_hidden_state
            vocabulary = self.engine.module.config.get_text_config().vocab_size
            before = hidden[:, -t - 1 : -1][rows.mask]
            found = head_logprobs(before, head, vocabulary, token_ids, temperature)
        return found.new_zeros(r, t).masked_scatter(rows.mask, found)


def _plain_head(module: Any, device: torch.device) -> Head | None:
    """The module's way from the last hidden states to logits, if it is one of those known here.

    Architectures scale, cap or shift their logits in ways of their own. So it is tried on a few
    tokens; None when the outcome is not the module's, whose logits are then computed all at once.
    """
    linear, base = module.get_output_embeddings(), module.base_model
    if linear is None or base is module:
        return None
    cap = getattr(module.config.get_text_config(), "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = linear(hidden).float()
        return logits if cap is None else cap * torch.tanh(logits / cap)

    ids = torch.arange(4, device=device)[None]
    with torch.no_grad():
        wanted = module(input_ids=ids, use_cache=False).logits.float()
        found = head(base(input_ids=ids, use_cache=False).last_hidden_state)
    if found.shape != wanted.shape:
        return None
    close = (found - wanted).abs().max() <= 0.02 * wanted.abs().max()
    return head if bool(close) else None


def _set_checkpointing(module: Any, recompute: Callable[..., Any] | None) -> None:
    """Have the module's layers called through `recompute`, or plainly. They ask for it only in
    training mode; their dropout stays off, as the modules inside them are not set to it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        if layer.gradient_checkpointing or recompute is not None:
            layer.gradient_checkpointing = layer.training = recompute is not None
            layer._gradient_checkpointing_func = recompute
