"""How services fail for good."""

from __future__ import annotations

from retrain.errors import RetrainError


class ServiceLostError(RetrainError, ConnectionError):
    """The service cannot be had, or has lost something of ours: the run goes on later, from its
    last checkpoint."""


class CallLostError(ServiceLostError):
    """One call has failed for good while others may succeed."""


class GoneError(ServiceLostError):
    """What a call is about is not at the service, or no longer."""


class RefusedError(RetrainError):
    """The service has understood, and will not."""
