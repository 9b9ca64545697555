"""Replay services that run elsewhere (`redraft replay serve`): whether a run may use them.

A spool keeps the turns of one run. So a new run takes the identity that its services were started with, which must be
empty, and a resumed one finds its own. Their settings have to be those of the recipe, which says all about a run.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from protocols.errors import SettingError
from redraft import run as runs
from replay.client import Client
from replay.config import ClientKeys, ReplaySettings, RunReplaySettings
from replay.keys import client_keys

OWN = {"shards", "curve"}  # settings of a service that change nothing for its peers
SETTING = "replay.services"


def keys_of(replay: RunReplaySettings) -> ClientKeys | None:
    """The keys of a peer of the services; None where they have none. Raises SettingError when they cannot be used."""
    return client_keys(Path(replay.keys)) if replay.keys else None


def unused(replay: RunReplaySettings) -> str:
    """The identity that services with nothing in them give a new run. Raises SettingError when they are not so, and
    DeadlineError when one does not answer."""
    with closing(Client(replay.services, "redraft", keys_of(replay))) as client:
        run_id = client.about()[0][0]
        stats = client.stats()
    if stats.rows or stats.step:
        cure = "Go on with that run by --resume, or serve an empty folder under another --run-id"
        raise SettingError(SETTING, f"they keep turns of the run {run_id}", cure)
    if not runs.NAME.fullmatch(run_id):
        raise SettingError(
            SETTING, f"--run-id {run_id!r} cannot name a run", "Use letters, digits, dots, dashes, underscores"
        )
    return run_id


def check(replay: RunReplaySettings, run_id: str, step: int) -> None:
    """Raises SettingError unless all services are those of this run, with the settings of its recipe, and know of the
    `step` from which it goes on: without their past, groups would be trained twice, and others never."""
    with closing(Client(replay.services, "redraft", keys_of(replay))) as client:
        found, reached = client.about(), client.stats().step
    for where, (served, settings) in zip(replay.services, found, strict=True):
        if served != run_id:
            cure = f"Start it with --run-id {run_id}"
            raise SettingError(SETTING, f"{where.serve} serves the run {served}, not {run_id}", cure)
        for key in ReplaySettings.model_fields.keys() - OWN:
            if settings[key] != (wanted := getattr(replay, key)):
                cure = f"Start it with {key}={wanted}"
                raise SettingError(f"replay.{key}", f"{where.serve} has {settings[key]}, the recipe {wanted}", cure)
    if reached < step:
        cure = "Serve the folder that they had, or begin another run with model.path: the folder of this one"
        raise SettingError(SETTING, f"they know of {reached} steps, and the run goes on from step {step}", cure)
