"""Settings of the replay service, and the addresses and constants that its two sides share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from protocols.settings import Settings

BATCH_ROWS = 32  # rows a message: per-message overhead dominates below
BATCH_BYTES = 1 << 20  # a message that holds so many is full
LINGER_S = 0.005  # the longest that a row waits for its batch to fill
WINDOW_ROWS = 4096  # rows that a producer may have unacknowledged
WINDOW_BYTES = 32 << 20  # bytes of records that it may have unacknowledged
QUEUED = 32  # messages that ZeroMQ queues for a peer on each side; the rest waits in the producer
MAX_ROW_BYTES = 64 << 20  # of one record
MAX_MESSAGE_BYTES = MAX_ROW_BYTES + 2 * BATCH_BYTES
RESEND_S = 2.0  # unanswered batches and requests are sent again
HEARTBEAT_S = 3.0  # between two signs of life over tcp; four missed ones end a connection, which is then made anew
LOST_CLAIM = "The learner stood still, or was cut off: resume it from its checkpoint, and raise replay.claim_lease_s"
SILENT_S = 5 * RESEND_S  # a waiting claim whose client has not resent it for so long is forgotten


@dataclass(frozen=True, slots=True)
class Endpoints:
    """ZeroMQ addresses: producers send rows to `ingest`, clients send requests to `serve`."""

    ingest: str
    serve: str


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a peer needs over tcp: the service's public key and the client pair, as z85 text. See replay.keys."""

    server: bytes
    public: bytes
    secret: bytes = field(repr=False)


class ReplaySettings(Settings):
    """How turns are kept and in which order groups are served."""

    durability: Literal["process", "power"] = "process"
    """What acknowledged turns survive: a kill of the service (`process`), or a power cut too (a disk sync each)."""

    shards: int = Field(default=1, ge=1, le=64)
    """How many services share the groups."""

    curve: bool = True
    """Encrypt tcp endpoints and admit only peers with a key. On one machine endpoints are files, with permissions."""

    sampler: Literal["fifo", "uniform", "prioritised"] = "fifo"
    """`fifo` serves groups in the order of their leases and waits for stragglers; `uniform` picks at random;
    `prioritised` by the priorities that the learner gives, where `max_uses` is above 1."""

    priority_exponent: float = Field(default=0.6, ge=0, le=4)
    """Of `prioritised`: 0 makes it uniform."""

    importance_exponent: float = Field(default=0.4, ge=0, le=1)
    """Of `prioritised`: 1 undoes the whole bias of its choice by weighting the loss, 0 nothing of it."""

    max_uses: int = Field(default=1, ge=1)
    """How many optimizer steps may use a group."""

    max_bytes: int = Field(default=2 << 30, ge=1 << 20)
    """Bytes of records that a shard may hold before producers start no new group; open ones go on beyond it."""

    drop_flat: bool = False
    """Filter groups whose episodes are worth the same: they carry no signal for credit that compares whole episodes of
    a group. Where credit compares groups, or turns of several, they do, and this is refused. Their turns stay until
    the next checkpoint."""

    claim_lease_s: float = Field(default=600.0, gt=0)
    """A consumer of which nothing is heard for so many seconds loses its claims. A learner is heard as long as it
    lives, however long its steps."""

    seed: int = 0
    """Of the samplers that pick at random."""

    @property
    def map_bytes(self) -> int:
        """Size of the LMDB map: small records fill pages by half, and open groups go on beyond `max_bytes`."""
        return 4 * self.max_bytes


class RunReplaySettings(ReplaySettings):
    """What a recipe says about replay: how services keep turns, and where they are if the run does not start them."""

    services: tuple[Endpoints, ...] = ()
    """Services that run elsewhere, by `redraft replay serve` with the settings of this section, one for each shard:
    [{ingest: tcp://HOST:5555, serve: tcp://HOST:5556}]."""
    keys: str | None = None
    """Folder with the keys of a peer of those services: server.key and client.key_secret."""
