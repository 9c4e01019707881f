"""A small OpenAI-compatible inference server for tests. It is neither vLLM nor SGLang.

It serves the embedded model (or a Hugging Face folder) in float32 on loopback, with the routes and
the words of vLLM that a trainer needs, and behind them it computes for real: completions of prompts
given as token ids, with the log-probabilities of the sampled tokens, of the base model or of
adapters in PEFT's format that are loaded and unloaded at run time. The sampled tokens come from the
keyed stream of uniform numbers that the request's seed names: the same seed gives the same
completion, and the same as the local policy draws under that key.

    with InferenceServer() as server:
        httpx.post(f"{server.url}/v1/completions", json={"model": "embedded", "prompt": [1, 2]})

or, for other processes, `python -m tests.inference.server --port 0 --state DIR`, which prints its
URL; `Remote` starts that, and has the same attributes.

As with vLLM: a seed is a signed 64-bit integer (a key of 2**63 or more is sent as key - 2**64);
completion i of n has seed + i, and every prompt of a list the same seeds; log-probabilities are raw
(temperature 1, nothing truncated) unless its `logprobs_mode` is "processed_logprobs"; an adapter's
rank is limited (there to 16 unless told otherwise, here to 64); a name can be loaded once only;
adapters are gone after a restart; prompt and max_tokens must fit into the context together.

What differs: texts as prompts, streaming and everything that would bend the distribution are
refused; `top_logprobs` has the sampled token alone; without a seed, draws follow the number of the
request; what is not sent has the API's defaults (vLLM takes top_k, repetition_penalty and others
from the model's generation_config.json); a damaged adapter is answered 400, which newer versions of
vLLM make a 500.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from retrain import seeding
from tests.inference.completions import Asked, Refused, noisy
from tests.inference.decoding import Decoder
from tests.loopback import service as loopback
from tests.loopback.faults import Fault
from tests.loopback.server import Answer, Handler

if TYPE_CHECKING:
    from retrain.models.lora import LoraAdapter

_log = logging.getLogger("inference-server")

LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]


@dataclass(frozen=True, slots=True)
class Served:
    """An adapter under its name; without weights it is the base model."""

    path: str
    weights: LoraAdapter | None


class InferenceServer(loopback.Loopback):
    """The server in this process. adapters: what is loaded, by name."""

    routes: ClassVar = {
        "GET": {"/health", "/version", "/v1/models"},
        "POST": {"/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"},
    }
    owner: ClassVar = "test"
    guarded: ClassVar = "/v1"
    """Paths that begin so want the key."""

    def __init__(
        self,
        state: Path | None = None,
        *,
        port: int = 0,
        folder: Path | None = None,
        model: str = "embedded",
        api_key: str | None = None,
        logprobs_mode: LogprobsMode = "raw_logprobs",
        runtime_lora: bool = True,
        max_lora_rank: int = 64,
        token_ids: bool = True,
    ) -> None:
        """state: the log lies here, log.jsonl; none is written without.
        folder: of a Hugging Face model; None is the embedded one. model: the name it is served by.
        api_key: asked for below /v1; None asks for none.
        runtime_lora: whether adapters can be loaded, as with VLLM_ALLOW_RUNTIME_LORA_UPDATING.
        token_ids: whether `return_token_ids` is known; if not it is ignored, as by old versions.
        """
        super().__init__(port, state / "log.jsonl" if state else None)
        self.model, self.api_key, self.logprobs_mode = model, api_key, logprobs_mode
        self.runtime_lora, self.max_lora_rank = runtime_lora, max_lora_rank
        self.token_ids = token_ids
        self.adapters: dict[str, Served] = {}
        self._newest: LoraAdapter | None = None
        self._loading = threading.Lock()
        self._decoder = Decoder(folder)
        self._numbers = itertools.count()

    def __enter__(self) -> InferenceServer:
        self._decoder.__enter__()
        self.back()
        return self

    def __exit__(self, *_: object) -> None:
        self.away()
        self._decoder.__exit__()
        self.ledger.close()

    def forget(self) -> None:
        self.adapters, self._newest = {}, None

    def reset(self) -> None:
        """As new: no adapters, no faults, no calls so far."""
        self.forget()
        self.faults.clear()
        self.ledger.calls.clear()
        self.ledger.maxima.clear()

    def respond(self, handler: Handler, body: bytes) -> Answer:
        path = urlsplit(handler.path).path
        try:
            asked = dict(json.loads(body or b"{}"))
        except (TypeError, ValueError) as error:
            return Refused(400, f"the body is not a JSON object: {error}").answer()
        if path.startswith("/control/"):
            return Answer.json(self.control(path.removeprefix("/control/"), asked))
        kind = path.rsplit("/", 1)[1]
        session = ":".join(map(str, handler.client_address))
        self.ledger.seen(session, handler.connection)
        call = self.ledger.begin(kind, session, asked)
        outcome = "dropped"
        try:
            answer = self._answer(handler, path, kind, asked)
            outcome = str(answer.status)
        finally:
            # Before it is sent: its receiver may be quicker to begin the next call.
            self.ledger.end(call, outcome)
        return answer

    def _answer(self, handler: Handler, path: str, kind: str, asked: dict[str, Any]) -> Answer:
        fault = self.faults.hit(kind, "submit")
        if fault is not None and not fault.carried_out and (answer := _struck(handler, fault)):
            return answer
        answer = self._carry_out(handler, path, asked, fault)
        if fault is not None and fault.carried_out and (instead := _struck(handler, fault)):
            return instead
        fault = self.faults.hit(kind, "retrieve")
        if fault is None:
            return answer
        if fault.kind == "drop":
            return replace(answer, cut=True)
        return _struck(handler, fault) or answer

    def _carry_out(
        self, handler: Handler, path: str, asked: dict[str, Any], fault: Fault | None
    ) -> Answer:
        known = [method for method, paths in self.routes.items() if path in paths]
        if not known or ("lora" in path and not self.runtime_lora):
            return Answer.json({"detail": "Not Found"}, 404)
        if handler.command not in known:
            return Answer.json({"detail": "Method Not Allowed"}, 405)
        wanted = f"Bearer {self.api_key}"
        guarded = self.api_key and path.startswith(self.guarded)
        if guarded and handler.headers["Authorization"] != wanted:
            return Answer.json({"error": "Unauthorized"}, 401)
        serve: Callable[[dict[str, Any], Fault | None], Answer]
        serve = getattr(self, "_" + path.rsplit("/", 1)[1])
        try:
            return serve(asked, fault)
        except Refused as refused:
            return refused.answer()
        except (KeyError, TypeError, ValueError) as error:
            return Refused(400, f"{type(error).__name__}: {error}").answer()
        except Exception as error:
            _log.exception("a request failed")
            return Refused(500, f"{type(error).__name__}: {error}").answer()

    def _health(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        return Answer(b"")

    def _version(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        return Answer.json({"version": "0.0.0+test"})

    def _models(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        context = self._decoder.base.context
        common = {"object": "model", "created": 0, "owned_by": self.owner}
        base = (self.model, self.model, None, context)
        adapters = [(name, served.path, self.model, None) for name, served in self.adapters.items()]
        cards = [
            {**common, "id": name, "root": root, "parent": parent, "max_model_len": longest}
            for name, root, parent, longest in [base, *adapters]
        ]
        return Answer.json({"object": "list", "data": cards})

    def _load_lora_adapter(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        name, path = asked.get("lora_name"), asked.get("lora_path")
        if not name or not path:
            message = "Both 'lora_name' and 'lora_path' must be provided."
            raise Refused(400, message, "InvalidUserInput")
        with self._loading:
            if name in self.adapters and not asked.get("load_inplace"):
                message = f"The lora adapter '{name}' has already been loaded."
                raise Refused(400, message, "InvalidUserInput")
            if fault is None or fault.kind != "stale":
                self._newest = self._read(name, Path(path))
            self.adapters[name] = Served(path, self._newest)
        return _told(f"Success: LoRA adapter '{name}' added successfully.")

    def _read(self, name: str, folder: Path) -> LoraAdapter:
        from safetensors import SafetensorError

        from retrain.errors import InputError

        if not (folder / "adapter_config.json").is_file():
            message = f"Loading lora {name} failed: No adapter found for {folder}"
            raise Refused(404, message, "NotFoundError")
        try:
            adapter: LoraAdapter = self._decoder.do(lambda: self._decoder.adapter(folder))
        except (OSError, ValueError, KeyError, SafetensorError, InputError) as error:
            raise Refused(400, f"Loading lora {name} failed: {error}") from error
        if adapter.spec.rank > self.max_lora_rank:
            message = f"LoRA rank {adapter.spec.rank} is greater than max_lora_rank "
            raise Refused(400, f"{message}{self.max_lora_rank}.")
        return adapter

    def _unload_lora_adapter(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        name = asked.get("lora_name")
        if not name:
            message = "'lora_name' needs to be provided to unload a LoRA adapter."
            raise Refused(400, message, "InvalidUserInput")
        if self.adapters.pop(name, None) is None:
            message = f"The lora adapter '{name}' cannot be found."
            raise Refused(404, message, "NotFoundError")
        return _told(f"Success: LoRA adapter '{name}' removed successfully.")

    def _completions(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        model = asked.get("model") or self.model
        served = Served(model, None) if model == self.model else self.adapters.get(model)
        if served is None:
            message = f"The model `{model}` does not exist."
            raise Refused(404, message, "NotFoundError", "model")
        base = self._decoder.base
        unseeded = seeding.key(next(self._numbers), "unseeded") >> 1
        wish = Asked.of(asked, base, self.logprobs_mode == "raw_logprobs", unseeded)
        settings = wish.settings
        if fault is not None and fault.kind == "temperature":
            settings = replace(settings, temperature=fault.amount, raw=False)
        found = self._decoder.complete(served.weights, settings, wish.prompts, wish.keys)
        if fault is not None and fault.kind == "noise":
            found = noisy(found, wish.keys, fault.amount)
        answer = wish.answer(model, found, base.codec.eos_ids[0], self._pieces)
        if not self.token_ids:
            for choice in answer["choices"]:
                del choice["token_ids"], choice["prompt_token_ids"]
        return Answer.json(answer)

    def _pieces(self, ids: list[int]) -> list[str]:
        tokenizer: Any = self._decoder.base.codec.tokenizer
        return list(self._decoder.do(lambda: [tokenizer.decode([index]) for index in ids]))


def _told(text: str) -> Answer:
    return Answer(text.encode(), content_type="text/plain; charset=utf-8")


def _struck(handler: Handler, fault: Fault) -> Answer | None:
    """What the caller is answered because of a fault, if anything; it may take its time, and
    raises Hangup when there is no answer."""
    if fault.kind == "status":
        return Refused(fault.status, "injected").answer(fault.headers)
    handler.suffer(fault)
    return None


class Remote(loopback.Remote):
    """The server as a process of its own, which can be killed and started again."""

    module = "tests.inference.server"


def main() -> None:
    """Serve until killed."""
    options_of = loopback.parser("A small OpenAI-compatible inference server for tests.")
    options_of.add_argument("--folder", type=Path, help="of a model; the embedded one if not given")
    options_of.add_argument("--model", default="embedded", help="the name it is served by")
    options_of.add_argument("--api-key")
    options_of.add_argument("--logprobs-mode", default="raw_logprobs")
    options_of.add_argument("--max-lora-rank", type=int, default=64)
    options = options_of.parse_args()
    server = InferenceServer(
        options.state,
        port=options.port,
        folder=options.folder,
        model=options.model,
        api_key=options.api_key,
        logprobs_mode=options.logprobs_mode,
        max_lora_rank=options.max_lora_rank,
    )
    with server:
        loopback.wait_for_the_end(server.url)


if __name__ == "__main__":
    main()
