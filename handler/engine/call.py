"""What one call that computes is about; nothing of it changes while the call runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from ..core.cache.entry import Entry
from ..core.cache.history import Fields
from ..core.declare.flow import Flow
from ..core.event import Notify, Request, notify_nobody
from ..core.fingerprint import Fingerprint
from ..core.settings import Settings
from ..core.store import keys, records
from ..core.store.objects import Store

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


@dataclass(frozen=True)
class Call:
    """
    One call.

    Attributes:
        request: The request.
        flow: The user's flow, imported.
        store: The store of results.
        settings: The settings of the process.
        request_id: Lambda's request ID of the call.
        prints: The fingerprints of the steps, stored so that a later miss can be explained.
        process: What each record holds about the process.
        warnings: Receives the warnings of the reply.
        notify: Called with a step and what happens to it.
        deadline: When Lambda kills the process, as a ``time.monotonic()`` reading.
        flow_run: The flow run in Prefect that made this call, if Prefect started it.
        is_again: Whether it was begun again, because another call had created one of its results.
        called_at: When it began.
    """

    request: Request
    flow: Flow
    store: Store
    settings: Settings
    request_id: str
    prints: Mapping[str, Fingerprint]
    process: Fields
    warnings: list[str]
    notify: Notify = notify_nobody
    deadline: float | None = None
    flow_run: FlowRun | None = None
    is_again: bool = False
    called_at: str = field(default_factory=records.now_iso)

    @property
    def stop_at(self) -> float:
        """When to stop computing, so that what is done can be saved and reported."""
        return (self.deadline or inf) - self.settings.margin_s

    @property
    def folder(self) -> str:
        """The folder of its ID."""
        return keys.encode_id(self.request.id)

    def arguments(
        self, name: str, found: Mapping[str, Entry], **others: object
    ) -> dict[str, object]:
        """The arguments of a step, as known: its inputs, parameters and ID, and *others*."""
        values = {"id": self.request.id, **self.request.step_params(name), **others}
        for other in self.flow.upstream[name]:
            if other in found:
                values[other] = found[other].value
        takes = self.flow.steps[name].takes
        return {parameter: values[parameter] for parameter in takes if parameter in values}
