"""A collector of spans: an HTTP server that takes them as OTLP over HTTP, as Jaeger, Tempo and the like do."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """`spans` are those that came, with the part that sent each as its `part`; with `refuses` it takes none."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.refuses, self.asked = False, 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.asked += 1
                if not collector.refuses:
                    collector.take(body)
                self.send_response(400 if collector.refuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            facts = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(facts["redraft.part"], span) for span in scope.spans]

    def named(self, name: str) -> list[Any]:
        return [span for _, span in list(self.spans) if span.name == name]

    def trace(self, trace_id: bytes) -> dict[str, list[tuple[str, Any]]]:
        """The spans of a trace with the part that sent each, by their names."""
        found = defaultdict(list)
        for part, span in list(self.spans):
            if span.trace_id == trace_id:
                found[span.name].append((part, span))
        return found

    @contextmanager
    def serving(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def facts(span: Any) -> dict[str, Any]:
    """The attributes of a span that was taken."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
