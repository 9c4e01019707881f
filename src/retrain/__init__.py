"""retrain: one TOML file in, evidence out.

    import retrain

    result = retrain.train("experiment.toml", overrides={"training.lr": 1e-4})
    result = retrain.run_campaign("campaign.toml", seeds=[1, 2, 3])
    result = retrain.resume("logs/campaign_20260131_120000")
    config = retrain.load_config("campaign.toml")

Importing this package is instant; torch is imported when something is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__", "load_config", "resume", "run_campaign", "train"]

if TYPE_CHECKING:
    from retrain.api import load_config, resume, run_campaign, train


def __getattr__(name: str) -> Any:
    if name in __all__:
        from retrain import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
