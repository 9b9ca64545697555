"""Settings of the replay service, and the addresses and constants that its two sides share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from protocols.settings import Settings

BATCH_ROWS = 32  # rows a message: per-message overhead dominates below
LINGER_S = 0.005  # the longest that a row waits for its batch to fill
WINDOW_ROWS = 4096  # rows that a producer may have unacknowledged
WINDOW_BATCHES = 2 * WINDOW_ROWS // BATCH_ROWS  # messages that ZeroMQ queues a peer: a window, and resends of it
RESEND_S = 2.0  # unanswered batches and requests are sent again
SILENT_S = 5 * RESEND_S  # a waiting claim whose client has not resent it for so long is forgotten


@dataclass(frozen=True, slots=True)
class Endpoints:
    """ZeroMQ addresses: producers send rows to `ingest`, clients send requests to `serve`."""

    ingest: str
    serve: str


class ReplaySettings(Settings):
    """How turns are kept and in which order groups are served."""

    sampler: Literal["fifo", "uniform"] = "fifo"
    """`fifo` serves groups in the order of their leases and waits for stragglers; `uniform` picks at random."""

    max_uses: int = Field(1, ge=1)
    """How many optimizer steps may use a group."""

    max_bytes: int = Field(2 << 30, ge=1 << 20)
    """Bytes of records held at which no new groups are leased. Rows of open groups are stored beyond it."""

    drop_flat: bool = False
    """Set aside groups whose scores do not differ: they carry no signal for group-relative credit."""

    claim_lease_s: float = Field(600.0, gt=0)
    """A consumer that sends no request for so many seconds loses its claims; longer than the longest step."""

    seed: int = 0
    """Of the `uniform` sampler."""

    @property
    def map_bytes(self) -> int:
        """Size of the LMDB map: small records fill pages by half, and open groups go on beyond `max_bytes`."""
        return 4 * self.max_bytes
