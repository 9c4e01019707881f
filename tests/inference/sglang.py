"""The test server with the routes and the words of SGLang. It is not SGLang.

What SGLang (0.5.23) does otherwise than vLLM: adapters are loaded at `/load_lora_adapter`, and what
becomes of that is told as `success` and `error_message`; a request names its adapter in
`lora_path`, and one that is not loaded is answered 400; the end token is always with the others;
fields that it does not know are ignored; log-probabilities are at the request's temperature; the
longest prompts that fit into the context are refused. Of its own ways with seeds nothing is here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tests.inference.completions import Refused
from tests.inference.server import InferenceServer
from tests.loopback.faults import Fault
from tests.loopback.server import Answer

TAKEN = {
    *("prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("seed", "n", "logprobs", "stop_token_ids", "skip_special_tokens"),
}
RESERVED = 6
"""Tokens of the context that prompts cannot have."""


@dataclass(frozen=True, slots=True)
class _Said:
    """How an error of SGLang's OpenAI routes looks."""

    status: int
    message: str

    def answer(self) -> Answer:
        body = {"object": "error", "message": self.message, "type": "BadRequestError"}
        return Answer.json({**body, "param": None, "code": self.status}, self.status)


class SGLangServer(InferenceServer):
    """The server in this process. token_ids: whether it is 0.5.17 or younger.
    breaks: which of the next completions are broken off."""

    routes: ClassVar = {
        "GET": {"/health", "/v1/models"},
        "POST": {"/v1/completions", "/load_lora_adapter", "/unload_lora_adapter"},
    }
    owner: ClassVar = "sglang"
    guarded: ClassVar = "/"

    def __init__(self, **options: Any) -> None:
        super().__init__(logprobs_mode="processed_logprobs", **options)
        self.breaks: list[bool] = []

    def _load_lora_adapter(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        name = asked["lora_name"]
        if name in self.adapters:
            message = f"Failed to load LoRA adapter {name} because it is already loaded"
            return self._told({"success": False, "error_message": message})
        try:
            super()._load_lora_adapter(asked, fault)
        except Refused as refused:
            return self._told({"success": False, "error_message": str(refused)})
        return self._told({"success": True, "error_message": None})

    def _unload_lora_adapter(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        name = asked["lora_name"]
        if self.adapters.pop(name, None) is None:
            message = f"LoRA with name {name} does not exist. Loaded LoRAs: {[*self.adapters]}"
            return self._told({"success": False, "error_message": message})
        return self._told({"success": True, "error_message": None})

    def _told(self, body: Mapping[str, Any]) -> Answer:
        loaded = {name: served.path for name, served in self.adapters.items()}
        return Answer.json({**body, "loaded_adapters": loaded}, 200 if body["success"] else 400)

    def _completions(self, asked: dict[str, Any], fault: Fault | None) -> Answer:
        adapter = asked.get("lora_path")
        if adapter is not None and adapter not in self.adapters:
            message = f"Got LoRA adapter that has never been loaded: {adapter}\n"
            return _Said(400, f"{message}All loaded adapters: {[*self.adapters]}.").answer()
        longest = self._decoder.base.context - RESERVED
        if len(asked["prompt"]) >= longest:
            message = f"Input length ({len(asked['prompt'])} tokens) exceeds the maximum allowed "
            return _Said(400, f"{message}length ({longest} tokens).").answer()
        known = {name: value for name, value in asked.items() if name in TAKEN}
        # Whether ids are told is asked; the pieces of text are told in any case.
        known |= {"return_token_ids": self.token_ids and bool(asked.get("return_token_ids"))}
        known |= {"include_stop_str_in_output": True, "model": adapter or self.model}
        try:
            answer = super()._completions(known, fault)
        except Refused as refused:
            return _Said(refused.status, str(refused)).answer()
        with self._loading:
            broken = bool(self.breaks) and self.breaks.pop(0)
        if not broken:
            return answer
        told = json.loads(answer.body)
        told["choices"][0]["finish_reason"] = "abort"
        return Answer.json(told)
