"""Where a server stands now, for metrics: what is asked for when somebody looks, and counted nowhere beside."""

from collections.abc import Callable, Iterator

from ..admission.identity import Identity
from ..admission.quotas import Quotas
from ..admission.slots import Slots
from ..telemetry.numbers import Reading, Sample


class Readings:
    """To be looked at on the event loop."""

    def __init__(
        self, slots: Slots, identity: Identity, quotas: Quotas | None, ends: Callable[[], float] | None = None
    ) -> None:
        """`quotas` is None where nobody has to say who calls; `ends` tells when the certificate of TLS expires."""
        self._slots = slots
        self._identity = identity
        self._quotas = quotas
        self._ends = ends

    def __call__(self) -> Iterator[Reading]:
        """Over all workers."""
        slots = self._slots
        yield Reading("tokenwire_open_streams", "Streams that hold a slot", samples=[Sample((), slots.taken)])
        yield Reading("tokenwire_queued_calls", "Calls that wait for a slot", samples=[Sample((), slots.waiting)])
        yield Reading("tokenwire_slots", "Streams that may be open at once", samples=[Sample((), slots.slots)])
        if self._ends is not None:
            yield Reading(
                "tokenwire_certificate_expiry_time_seconds",
                "When the server's certificate expires, as Unix time; not there without TLS",
                samples=[Sample((), self._ends())],
            )
        if self._quotas is None:
            return
        told = [(caller.name, one) for caller in self._identity.named for one in self._quotas.known(caller)]
        labels = ("caller", "quota")
        yield Reading(
            "tokenwire_quota_used",
            "What callers of the callers file have used, in this minute or on this day (UTC)",
            labels,
            [Sample((name, one.name), one.used) for name, one in told],
        )
        yield Reading(
            "tokenwire_quota_limit",
            "What they may use",
            labels,
            [Sample((name, one.name), one.limit) for name, one in told if one.limit is not None],
        )
