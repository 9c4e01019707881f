"""`[reward]` and `[[reward.components]]`: how a completion is judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retrain.config.table import Count, PositiveInt, Table


class RewardKeys(Table):
    """Keys of one reward, alone or as a component."""

    custom_module: str = ""
    """For `custom`: the module, e.g. `my_rewards`."""
    custom_function: str = ""
    """For `custom`: the function in it, `fn(response, reference)` -> number, plain or async; it may
    also take `problem` or `metadata`."""
    correct_threshold: float = 0.5
    """For `custom`, `judge` and `composite`: a reward at or above this counts as correct in
    `correct_rate`."""
    timeout: Annotated[float, Field(gt=0.0)] | None = None
    """For `math`: seconds of CPU time for one answer (5 unless written), after which it is
    unverifiable. For `judge`: seconds for one request (60 unless written), after which it is sent
    again."""
    base_url: str = ""
    """For `judge`: an OpenAI-compatible server, e.g. `"http://localhost:8000/v1"`."""
    model: str = ""
    """For `judge`: the model's name there."""
    api_key_env: str = "OPENAI_API_KEY"
    """For `judge`: the environment variable that holds the key; it may be unset for a server that
    wants none. The key itself is never written anywhere."""
    prompt: str = ""
    """For `judge`: what it is asked, with `{problem}`, `{reference}` and `{response}`; it must ask
    for a last line `SCORE: <number from 0 to 1>`. Empty takes the built-in one."""
    concurrency: PositiveInt = 16
    """For `judge`: requests at the same time."""
    retries: Count = 5
    """For `judge`: how often a request that failed is sent again, with growing pauses."""
    cache_dir: str = ""
    """For `judge`: folder where verdicts are kept, so that the same completion is not judged
    twice; empty: `judge_cache` in the log folder."""


class RewardComponentConfig(RewardKeys):
    """`[[reward.components]]`: one part of a composite reward."""

    type: Literal["match", "math", "judge", "custom"]
    """As `[reward].type`."""
    weight: float = 1.0
    """Factor of the part in the sum."""
    name: str = ""
    """Name in the metrics, `reward_components/<name>/mean`; empty takes the type."""


class RewardConfig(RewardKeys):
    """`[reward]`: how a completion is judged."""

    type: Literal["match", "math", "judge", "custom", "composite"] = "match"
    """`match`: the last `\\boxed{}` equals the reference answer as text. `math`: it is the same
    number, expression, set, … . `judge`: a model on a server says. `custom`: your function.
    `composite`: the weighted sum of `[[reward.components]]`. Unless written: `math` for the source
    `math`, else `match`."""
    on_failure: Literal["error", "mask"] = "error"
    """When a judge cannot be had or gives no verdict: stop the run, or `mask` the completion,
    which leaves it out of its group (counted in the metrics). It is never a silent 0."""
    components: list[RewardComponentConfig] = Field(default_factory=list)
    """For `composite`: its parts."""
