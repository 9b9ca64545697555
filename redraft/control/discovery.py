"""How Prometheus finds the processes of a run: the controller serves its own metrics and, at /sd, where all others are.

The answer has the format of Prometheus's HTTP service discovery: [{"targets": ["host:port"], "labels": {...}}, ...]
with the labels run, part (controller, replay, learner, actor, ray) and name (actor-0). It is made when it is asked for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from http.server import ThreadingHTTPServer

from prometheus_client import MetricsHandler

from protocols.errors import SettingError
from protocols.metrics import LOOPBACK
from redraft.config import MetricsSettings

Process = tuple[str, str, str, int]
"""Part, name, its node's address and the port on which it serves its metrics."""


def serve(run: str, settings: MetricsSettings, address: str | None, others: Callable[[], Iterable[Process]]) -> str:
    """Serves /sd, and this process's metrics at every other path, in threads; returns the URL of /sd.

    `address` is this node's, None where the run has no other. Raises SettingError when the port is taken.
    """

    def targets() -> list[dict]:
        found = [("controller", "controller", host, server.server_port), *others()]
        return [
            {
                "targets": [f"{where if address else host}:{port}"],
                "labels": {"run": run, "part": part, "name": name},
            }
            for part, name, where, port in found
        ]

    host = settings.host or address or LOOPBACK
    try:
        server = ThreadingHTTPServer((settings.listen(bool(address)), settings.port), _handler(targets))
    except OSError as error:
        problem = f"port {settings.port} cannot be used: {error.strerror}"
        raise SettingError("metrics.port", problem, "Choose another, or 0") from None
    threading.Thread(target=server.serve_forever, name="discovery", daemon=True).start()
    return f"http://{host}:{server.server_port}/sd"


def _handler(targets: Callable[[], list[dict]]) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/sd":
                super().do_GET()
                return
            body = json.dumps(targets()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
