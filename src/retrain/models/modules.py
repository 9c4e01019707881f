"""Any Hugging Face causal LM through its own module, the adapter added as low-rank side products.

The base weights stay as they are, in any dtype; the adapter's share of a layer's output is computed
in the same, from float32 masters. Slower than the functional engines, which know only Llama-like
models.

Architectures differ in what they make of a mask and in what they keep of a text, so both are tried
when the model is loaded: where left padding or the module's own cache gives other numbers than a
plain forward pass, rows stand on the left and are computed anew for every token.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retrain.errors import InputError
from retrain.models.engine import Cache, Prompts, Rows, pad_ids, with_prompts
from retrain.models.head import Head, head_logprobs, token_logprobs
from retrain.models.lora import LoraAdapter, target_modules
from retrain.models.shape import EngineKind, context_of
from retrain.types import IntArray

_log = logging.getLogger("retrain")

# Mean error of logits, over their standard deviation, up to which two ways of computing agree.
_CLOSE = 1e-3
_CLOSE_IN_16_BITS = 0.2


@dataclass(slots=True)
class ModuleCache:
    """The module's own cache, by the name under which it takes it; mask (rows, tokens so far);
    positions (rows,) of the next token."""

    name: str
    inner: Any
    mask: Tensor
    positions: Tensor

    def select(self, index: Tensor) -> None:
        # Unlike `batch_select_indices`, layers of every kind have it; it takes any rows too.
        self.inner.reorder_cache(index)
        self.mask = self.mask.index_select(0, index)
        self.positions = self.positions.index_select(0, index)


@dataclass(slots=True)
class TokenCache:
    """No more than the rows' tokens: ids (rows, tokens), right-padded; lengths (rows,)."""

    ids: Tensor
    lengths: Tensor

    def select(self, index: Tensor) -> None:
        self.ids, self.lengths = self.ids[index], self.lengths[index]


@dataclass(frozen=True, slots=True)
class ModulePrompts:
    """Token ids of prompts and their mask, (prompts, tokens)."""

    ids: Tensor
    mask: Tensor


class ModuleEngine:
    """Runs the module; hooks on its layers look at the session that is active.

    sessions: with the module's own cache, or without one where that is not right. context: tokens
    of a text at most.

    Raises InputError when a text's logits depend on more than the tokens before.
    """

    kind: EngineKind = "modules"
    rows_hold_prompts = True
    refills = False

    def __init__(self, module: Any) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.module = module
        self.device: torch.device = next(module.parameters()).device
        self.head = _plain_head(self.module, self.device)
        self.context = context_of(self.module.config.get_text_config().to_dict()) or sys.maxsize
        self._active: ModuleSession | None = None
        for name, linear in target_modules(module, "all-linear").items():
            linear.register_forward_hook(self._hook(name))
        for layer in module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                # transformers' own way takes training mode, which turns on dropout.
                layer.forward = partial(self._run_layer, layer.forward)
        self.sessions: type[ModuleSession] = ModuleSession
        if not _is_right(self):
            self._do_without_a_cache()

    def _do_without_a_cache(self) -> None:
        self.sessions, kind = UncachedSession, self.module.config.model_type
        if not _is_right(self):
            raise InputError(
                f"model.model: the logits of this {kind} model depend on later tokens or on its "
                "neighbours in a batch; take a causal language model"
            )
        _log.warning(
            "%s runs without a cache, which is slow: with one, or with padding, its numbers are "
            "not those of a plain forward pass",
            kind,
        )

    def _hook(self, name: str) -> Any:
        def add_adapter(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            session = self._active
            if session is None or name not in session.leaves:
                return output
            a, b = session.leaves[name]
            x = args[0]
            side = F.linear(F.linear(x, a.to(x.dtype)), (session.scale * b).to(x.dtype))
            return output + side

        return add_adapter

    def _run_layer(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One of the module's layers; where the session wants it, its activations are computed
        again in the backward pass, with the same adapter."""
        session = self._active
        if session is None or not session.checkpointing:
            return forward(*args, **kwargs)
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), self.using(session)),
            **kwargs,
        )

    @contextmanager
    def using(self, session: ModuleSession) -> Iterator[None]:
        """The session is active for calls of the module inside this block."""
        before, self._active = self._active, session
        try:
            yield
        finally:
            self._active = before

    def session(
        self, adapter: LoraAdapter | None, train: bool = False, checkpointing: bool = False
    ) -> ModuleSession:
        return self.sessions(self, adapter, train, train and checkpointing)


@dataclass(slots=True)
class ModuleSession:
    """The engine with one adapter's factors.

    In training they are leaves whose gradients accumulate straight into `adapter.grads`.
    """

    engine: ModuleEngine
    adapter: LoraAdapter | None
    train: bool
    checkpointing: bool
    leaves: dict[str, tuple[Tensor, Tensor]] = field(init=False)

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

    def finish(self) -> None:
        """Nothing is missing: backward passes wrote into `adapter.grads`."""

    def _call(self, only_base: bool = False, **inputs: Any) -> Any:
        module = self.engine.module.base_model if only_base else self.engine.module
        with (
            self.engine.using(self),
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
        name = "past_key_values" if "past_key_values" in out else "cache_params"
        cache = ModuleCache(name, out[name], mask, mask.sum(1))
        return cache, out.logits[:, -1].float()

    def decode(self, cache: Cache, token_ids: Tensor) -> Tensor:
        assert isinstance(cache, ModuleCache)
        cache.mask = F.pad(cache.mask, (0, 1), value=True)
        # Mamba's states hold no padding, and it takes a mask as that of the tokens it is given.
        attends = cache.name == "past_key_values"
        out = self._call(
            input_ids=token_ids[:, None],
            attention_mask=cache.mask.long() if attends else None,
            position_ids=cache.positions[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{cache.name: cache.inner},
        )
        # Rows that are finished go on for a while, maybe beyond a table of positions.
        cache.positions = (cache.positions + 1).clamp_max(self.engine.context - 1)
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


class UncachedSession(ModuleSession):
    """The same without a cache and without padding before a text, for every causal module."""

    def prefill(self, prompts: Sequence[IntArray], room: int) -> tuple[Cache, Tensor]:
        ids, mask = pad_ids(prompts, self.engine.device)
        roomy = F.pad(ids, (0, max(0, min(room, self.engine.context) - ids.shape[1])))
        cache = TokenCache(roomy, mask.sum(1))
        return cache, self._next_logits(cache)

    def decode(self, cache: Cache, token_ids: Tensor) -> Tensor:
        assert isinstance(cache, TokenCache)
        places = cache.lengths.clamp_max(cache.ids.shape[1] - 1)
        cache.ids[torch.arange(len(token_ids)), places] = token_ids
        cache.lengths = places + 1
        return self._next_logits(cache)

    def _next_logits(self, cache: TokenCache) -> Tensor:
        ids = cache.ids[:, : int(cache.lengths.max())]
        hidden, head = self._hidden(ids)
        last = hidden[torch.arange(len(ids)), cache.lengths - 1]
        return last.float() if head is None else head(last)

    def _hidden(self, ids: Tensor) -> tuple[Tensor, Head | None]:
        """Last hidden states and the head on them, or logits and None."""
        head = self.engine.head
        out = self._call(only_base=head is not None, input_ids=ids, use_cache=False)
        return (out.logits if head is None else out.last_hidden_state), head

    def prompts(self, prompts: Sequence[IntArray]) -> ModulePrompts:
        return ModulePrompts(*pad_ids(prompts, self.engine.device))

    def logprobs(self, prompts: Prompts, rows: Rows, temperature: float) -> Tensor:
        assert isinstance(prompts, ModulePrompts)
        ids, starts = with_prompts(prompts.ids, prompts.mask, rows)
        hidden, head = self._hidden(ids)
        row, token = rows.mask.nonzero(as_tuple=True)
        before, token_ids = hidden[row, starts[row] - 1 + token], rows.token_ids[row, token]
        if head is None:
            found = token_logprobs(before, token_ids, temperature)
        else:
            vocabulary = self.engine.module.config.get_text_config().vocab_size
            found = head_logprobs(before, head, vocabulary, token_ids, temperature)
        return found.new_zeros(rows.mask.shape).masked_scatter(rows.mask, found)


@torch.no_grad()
def _is_right(engine: ModuleEngine) -> bool:
    """Whether the engine's sessions give what plain forward passes give, one text at a time: for
    texts of two lengths side by side, scored, and continued in another order."""
    device, module = engine.device, engine.module
    vocabulary = module.config.get_text_config().vocab_size
    tokens = np.random.default_rng(0).integers(0, vocabulary, size=(2, 7))
    texts, lengths, order = [tokens[0], tokens[1, :4]], (5, 2), [1, 0, 1]
    plain = [
        module(input_ids=torch.from_numpy(text).to(device)[None], use_cache=False).logits[0].float()
        for text in texts
    ]
    prompts = [text[:n] for text, n in zip(texts, lengths, strict=True)]
    answers = torch.from_numpy(np.stack([texts[i][lengths[i] :] for i in order])).to(device)
    wanted = torch.stack([plain[i][lengths[i] - 1 : lengths[i] + 2] for i in order])
    index = torch.tensor(order, device=device)
    try:
        session = engine.session(None)
        cache, first = session.prefill(prompts, max(lengths) + 2)
        cache.select(index)
        found = [first[index], *(session.decode(cache, answers[:, step]) for step in range(2))]
        rows = Rows(index, answers, torch.ones_like(answers, dtype=torch.bool))
        scored = session.logprobs(session.prompts(prompts), rows, 1.0)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # What a module that knows no such cache or argument raises is of any kind.
        return False
    logprobs = wanted[:, :2].log_softmax(-1).gather(2, answers[:, :, None])[:, :, 0]
    off_scores = (scored - logprobs).abs().mean(1, keepdim=True)
    errors = torch.cat([(torch.stack(found, 1) - wanted).abs().mean(2), off_scores], 1)
    limit = _CLOSE if module.dtype == torch.float32 else _CLOSE_IN_16_BITS
    # NaN is no difference: weights that are not finite are told by the first update.
    return not bool((errors > limit * wanted.std()).any())


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
        hidden = base(input_ids=ids, use_cache=False).last_hidden_state
        if hidden.shape[-1] != linear.weight.shape[-1]:
            return None
        found = head(hidden)
    if found.shape != wanted.shape:
        return None
    close = (found - wanted).abs().max() <= 0.02 * wanted.abs().max()
    return head if bool(close) else None
