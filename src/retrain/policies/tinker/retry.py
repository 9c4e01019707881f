"""What the service's failures mean, and how long to be patient with them.

The SDK has patience of its own, and ours must not multiply it. It sends a request again for up to
five minutes while it cannot be submitted (408, 409, 429, 5xx, no connection), keeping its number,
so that the service does nothing twice. It asks for a result for ever, as long as it gets 5xx, 429
or no connection. On top of both, a sampling client repeats whole samples for ever, which we turn
off. So what is left to us are results that never will come, and the end of all patience.
"""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import tinker
from tinker.lib.retryable_exception import RetryableException
from tinker.types import RequestErrorCategory

from retrain import seeding
from retrain.answers import without_key
from retrain.policies.lost import CallLostError as CallLostError
from retrain.policies.lost import GoneError as GoneError
from retrain.policies.lost import RefusedError as RefusedError
from retrain.policies.lost import ServiceLostError as ServiceLostError
from retrain.policies.tinker.access import KEY_VARIABLE

_SHOWN_CHARACTERS = 300
_INNARDS = re.compile(r" for self\.request_id=.*")


@dataclass(frozen=True, slots=True)
class Patience:
    """attempts:      of a call that changes nothing at the service. A fault of one machine there is
                   over when another one takes the call; four in a row are no accident.
    first_pause_s: before the second attempt, doubled before each further one, all of them varied
                   by half, so that rows that failed together do not come back together.
    longest_pause_s: of these.
    look_s:        a call that takes longer is an occasion to ask whether the service is there at
                   all. Long enough for most completions, so that it is rarely asked.
    away_s:        silence after which the service counts as gone; as long as the SDK tries to
                   submit a request.
    answer_s:      the longest wait for one result of a service that answers otherwise: below the
                   30 minutes after which a campaign takes a worker as hung.
    """

    attempts: int = 4
    first_pause_s: float = 2.0
    longest_pause_s: float = 30.0
    look_s: float = 15.0
    away_s: float = 300.0
    answer_s: float = 1500.0

    def pauses(self, key: int) -> Iterator[float]:
        """Seconds before the second, third, … attempt; from a stream of their own for each key."""
        varied = seeding.generator(key, "tinker retry")
        for attempt in range(self.attempts - 1):
            pause = min(self.first_pause_s * 2**attempt, self.longest_pause_s)
            yield pause * float(varied.uniform(0.5, 1.5))


class Failure(Enum):
    """What a failed call means."""

    AGAIN = "it may go well another time"
    GONE = "what it is about is not there (any more)"
    REFUSED = "it would fail every time"


_AGAIN = frozenset({408, 409, 429})
_GONE = frozenset({404, 410})


def failure_of(error: BaseException) -> Failure:
    """The kind of an error of the SDK's, or of one that it has wrapped."""
    if isinstance(error, tinker.RequestFailedError):
        of_ours = error.category is RequestErrorCategory.User
        return Failure.REFUSED if of_ours else Failure.AGAIN
    if isinstance(error, tinker.APIStatusError):
        if error.status_code in _AGAIN or error.status_code >= 500:
            return Failure.AGAIN
        return Failure.GONE if error.status_code in _GONE else Failure.REFUSED
    again = (
        tinker.APIConnectionError,
        RetryableException,
        TimeoutError,
        concurrent.futures.CancelledError,
    )
    if isinstance(error, again):
        return Failure.AGAIN
    # Failed retrievals, and a client that an earlier failure has ended, tell their reason behind.
    if error.__cause__ is not None:
        return failure_of(error.__cause__)
    return Failure.REFUSED


def words(error: BaseException) -> str:
    """An error in one line that is not too long, without the SDK's own variables and the key."""
    text = _INNARDS.sub("", " ".join(str(error).split())) or type(error).__name__
    text = without_key(text, KEY_VARIABLE)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
