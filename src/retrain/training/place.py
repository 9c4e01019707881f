"""Where a run is trained, as far as its config leaves that to others."""

from __future__ import annotations

from dataclasses import dataclass

from retrain.config.schema import BackendConfig
from retrain.policies.inference.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Place:
    """backend:  the run's `[backend]` within what there is of the machine and of a service.
    endpoint: the inference server that was started for the run; None for the one, if any, that its
              config names.
    """

    backend: BackendConfig
    endpoint: Endpoint | None = None
