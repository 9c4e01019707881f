"""What is odd about `[reward]`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Set
from urllib.parse import urlsplit

from retrain.config.findings import Finding, idle
from retrain.config.messages import near, show
from retrain.config.reward import RewardComponentConfig, RewardConfig, RewardKeys
from retrain.config.schema import RunConfig

READERS = {
    "custom_module": ("custom",),
    "custom_function": ("custom",),
    "correct_threshold": ("custom", "judge", "composite"),
    "timeout": ("math", "judge"),
    "base_url": ("judge",),
    "model": ("judge",),
    "api_key_env": ("judge",),
    "prompt": ("judge",),
    "concurrency": ("judge",),
    "retries": ("judge",),
    "cache_dir": ("judge",),
    "components": ("composite",),
}
"""Keys of `[reward]` and the types that read them."""

_NEEDS = {
    "custom": {
        "custom_module": 'custom_module = "my_rewards"',
        "custom_function": 'custom_function = "score"',
    },
    "judge": {
        "base_url": 'base_url = "http://localhost:8000/v1"',
        "model": 'model = "Qwen/Qwen3-32B"',
    },
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_TOTAL = "total_reward"


def check_reward(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys of `[reward]` that are missing, or that its type does not read."""
    reward = run.reward
    for key, types in READERS.items():
        if f"reward.{key}" in written and reward.type not in types:
            readers = " and ".join(show(name) for name in types)
            reason = f"type = {show(reward.type)}; it is for {readers}"
            yield idle(f"reward.{key}", reason, "reward.type", is_error=True)
    if "reward.on_failure" in written and not list(judges(reward)):
        reason = "there is no judge that could fail"
        also = ("reward.type", *(f"reward.components[{n}].type" for n in _numbers(reward)))
        yield idle("reward.on_failure", reason, *also, is_error=True)
    yield from _keys("reward", reward.type, reward)
    if reward.type == "composite":
        yield from _components(run)


def judges(reward: RewardConfig) -> Iterator[tuple[str, RewardKeys]]:
    """(place, keys) of every judge of a reward."""
    if reward.type == "judge":
        yield "reward", reward
    elif reward.type == "composite":
        for number, component in enumerate(reward.components, start=1):
            if component.type == "judge":
                yield f"reward.components[{number}]", component


def keys_wanted(reward: RewardConfig) -> Iterator[tuple[str, str]]:
    """(key, warning) for each judge elsewhere whose key is not set on this machine."""
    for place, judge in judges(reward):
        host = urlsplit(judge.base_url).hostname or "localhost"
        local = host in ("localhost", "::1") or host.startswith("127.")
        if not local and not os.environ.get(judge.api_key_env, "").strip():
            message = f"{show(judge.api_key_env)} is not set here; {host} will likely want a key"
            yield f"{place}.api_key_env", message


def address_problem(base_url: str) -> str:
    """What is wrong with the address of a server; empty when nothing is."""
    example = 'e.g. "http://localhost:8000/v1"'
    try:
        parts = urlsplit(base_url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or re.search(r"\s", base_url):
        return f"{show(base_url)} is no address of a server, {example}"
    if parts.username or parts.password:
        return (
            "holds a password, which would be written into the run's files; put it into the "
            "environment variable that api_key_env names"
        )
    if parts.query or parts.fragment:
        return f"{show(base_url)} has more than an address and a path; {example}"
    if parts.path.rstrip("/").endswith("/chat/completions"):
        return f"/chat/completions is added to it; write what stands before, {example}"
    return ""


def prompt_problem(prompt: str) -> str:
    """What is wrong with a prompt of the user's for a judge; empty when nothing is."""
    if "{response}" not in prompt:
        return "does not hold {response}, the place of the completion"
    if not re.search(r"SCORE\s*:", prompt):
        return "does not ask for a last line SCORE: <number from 0 to 1>"
    known = ("problem", "reference", "response")
    for name in re.findall(r"\{([A-Za-z_]+)\}", prompt):
        if name not in known and (meant := near(name, known)):
            return f"{{{name}}} is not filled in; did you mean {{{meant[0]}}}?"
    return ""


def _keys(place: str, kind: str, keys: RewardKeys) -> Iterator[Finding]:
    """What one reward, alone or as a component, lacks or has wrong."""
    for key, example in _NEEDS.get(kind, {}).items():
        if not getattr(keys, key):
            message = f"is missing; type = {show(kind)} needs it, e.g. {example}"
            yield Finding(f"{place}.{key}", message, (f"{place}.type",))
    if kind != "judge":
        return
    if keys.base_url and (problem := address_problem(keys.base_url)):
        yield Finding(f"{place}.base_url", problem)
    if keys.prompt and (problem := prompt_problem(keys.prompt)):
        yield Finding(f"{place}.prompt", problem)
    if not keys.api_key_env.isidentifier():
        # It may be the key itself, which must not be shown.
        message = "is no name of an environment variable; write its name, never the key itself"
        yield Finding(f"{place}.api_key_env", message)


def _components(run: RunConfig) -> Iterator[Finding]:
    components = run.reward.components
    if not components:
        message = 'are missing; type = "composite" sums up [[reward.components]]'
        yield Finding("reward.components", message, ("reward.type",))
        return
    names: dict[str, int] = {}
    for number, component in enumerate(components, start=1):
        place = f"reward.components[{number}]"
        yield from _keys(place, component.type, component)
        yield from _idle_in(place, component)
        name = component.name or component.type
        if not _NAME.fullmatch(name) or name == _TOTAL:
            reason = "is the sum's" if name == _TOTAL else "cannot name a metric; use letters, "
            reason += "" if name == _TOTAL else "digits and _ . + -"
            yield Finding(f"{place}.name", f"{show(name)} {reason}")
        elif (first := names.setdefault(name, number)) != number:
            message = f"{show(name)} is also what reward.components[{first}] is called"
            both = (place, f"reward.components[{first}]")
            also = tuple(f"{each}.{key}" for each in both for key in ("name", "type"))
            yield Finding(f"{place}.name", f"{message}; give each a name", also)
        if component.weight < 0 and run.algorithm.advantage_mode == "maxrl":
            message = (
                f"{component.weight:g} can make the reward negative, which is an error with "
                'advantage_mode = "maxrl"; take "grpo" then'
            )
            yield Finding(f"{place}.weight", message, is_error=False)
    if not any(component.weight for component in components):
        also = tuple(f"reward.components[{n}].weight" for n in _numbers(run.reward))
        message = "all have the weight 0, so the reward is always 0"
        yield Finding("reward.components", message, also)


def _idle_in(place: str, component: RewardComponentConfig) -> Iterator[Finding]:
    """Keys that the component's type does not read. A key with its default value is fine:
    resolved configs write all."""
    for key, field in RewardKeys.model_fields.items():
        types = [name for name in READERS[key] if name != "composite"]
        if getattr(component, key) == field.get_default(call_default_factory=True):
            continue
        if key == "correct_threshold":
            reason = "what is correct is decided for the sum, by [reward].correct_threshold"
        elif component.type in types:
            continue
        else:
            readers = " and ".join(show(name) for name in types)
            reason = f"type = {show(component.type)}; it is for {readers}"
        message = f"is written, but nothing reads it: {reason}"
        yield Finding(f"{place}.{key}", message, (f"{place}.type",))


def _numbers(reward: RewardConfig) -> range:
    return range(1, len(reward.components) + 1)
