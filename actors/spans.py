"""The spans of an actor: a group that it has played, and each of its turns."""

from __future__ import annotations

from protocols import traces
from protocols.turns import Lease, Turn


def play(lease: Lease, lasted_s: float, error: str, actor: str) -> None:
    """Of a group that was just played; `error` says why it was not closed, "" where it was."""
    own, of = (span(lease.group, lease.fencing_token) for span in (traces.played, traces.leased))
    traces.record("play", own, lasted_s, of, error=error, actor=actor)


def turn(made: Turn) -> None:
    """Of a turn that has just been made."""
    of = made.group, made.lease
    queued_s, generating_s, environment_s = made.timing
    traces.record(
        "turn",
        traces.turned(*of, made.turn),
        sum(made.timing),
        traces.played(*of),
        role=made.role.name.lower(),
        episode=made.episode,
        index=made.index,
        tokens=len(made.response),
        queued_s=queued_s,
        generating_s=generating_s,
        environment_s=environment_s,
    )
