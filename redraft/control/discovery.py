"""How Prometheus finds the processes of a run: the controller serves its own metrics and, at /sd, where all others are.

The answer has the format of Prometheus's HTTP service discovery: [{"targets": ["host:port"], "labels": {...}}, ...]
with the labels run, part (controller, replay, learner, actor, ray) and name (actor-0). It is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from protocols import metrics_page, strict_json
from protocols.errors import SettingError
from protocols.metrics_page import EVERYWHERE, LOOPBACK, Listen, Page
from redraft.config import MetricsSettings
from redraft.run import Run

Process = tuple[str, str, str, int]
"""Part, name, its node's address and the port on which it serves its metrics."""


def check(settings: MetricsSettings, cluster: bool) -> None:
    """Raises SettingError where the token is none, or would be asked for by nobody."""
    if settings.token is None:
        return
    if not settings.opened(cluster):
        problem = "metrics are open to this machine alone, which is asked for none"
        raise SettingError("metrics.token", problem, "Leave it out, or set metrics.host")
    metrics_page.read(Path(settings.token), "metrics.token")


def listen(run: Run, settings: MetricsSettings) -> Listen:
    """Where the processes of a run serve their metrics. Raises SettingError where there is no token."""
    if not settings.opened(run.cluster):
        return Listen()
    if settings.token is None:
        return Listen(EVERYWHERE, metrics_page.made(run.folder))
    return Listen(EVERYWHERE, metrics_page.read(Path(settings.token), "metrics.token"))


def serve(
    run: str, settings: MetricsSettings, at: Listen, address: str | None, others: Callable[[], Iterable[Process]]
) -> str:
    """Serves /sd, and this process's metrics at every other path, in threads; returns the URL of /sd.

    `address` is this node's, None where the run has no other. Raises SettingError when the port is taken.
    """

    def targets() -> list[dict]:
        found = [("controller", "controller", host, port), *others()]
        return [
            {
                "targets": [f"{where if address else host}:{number}"],
                "labels": {"run": run, "part": part, "name": name},
            }
            for part, name, where, number in found
        ]

    host = settings.host or address or LOOPBACK
    port = metrics_page.serve(settings.port, "metrics.port", at, _page(targets))
    return f"http://{host}:{port}/sd"


def _page(targets: Callable[[], list[dict]]) -> type[Page]:
    class Listing(Page):
        def answer(self) -> None:
            if self.path.partition("?")[0] != "/sd":
                super().answer()
                return
            body = strict_json.dumps(targets()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Listing
