"""Spans of OpenTelemetry, where `logs.traces` asks for them: from the lease of a group to the step that used it.

    one trace a group    lease (controller) -> play (actor) -> a turn each (actor), close (replay)
    one trace a step     step (learner), with a link to the `close` of each group that it used

Nothing is sent along with turns for this: a trace has the id of its group, and the id of a span follows from what it is
of, so that each part knows its parent's. Where to spans go, how many are kept and what else is said of a process is
read from OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES).
Nothing of it is imported before `begin`, and until then `record` does nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from protocols.errors import SettingError

log = logging.getLogger("redraft.traces")
PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
FLUSH_S = 3.0  # that the end of a part waits for a collector
Fact = str | int | float | bool
_sender: _Sender | None = None


class Span(NamedTuple):
    """Names one: the trace in 16 bytes, itself in 8."""

    trace: bytes
    id: bytes


def leased(group: bytes, lease: int) -> Span:
    """A lease of a group; `lease` is its fencing number."""
    return _of(group, "lease", lease)


def played(group: bytes, lease: int) -> Span:
    return _of(group, "play", lease)


def turned(group: bytes, lease: int, turn: int) -> Span:
    return _of(group, "turn", lease, turn)


def closed(group: bytes) -> Span:
    """A group closes once, whatever lease it was that did."""
    return _of(group, "close")


def stepped(run_id: str, version: int) -> Span:
    """The step that makes this version of the weights; it is never made again under that number."""
    return _of(hashlib.blake2b(f"{run_id}\x1f{version}".encode(), digest_size=16).digest(), "step")


def _of(trace: bytes, *what: str | int) -> Span:
    return Span(trace, hashlib.blake2b(trace + repr(what).encode(), digest_size=8).digest())


def check(asked: bool) -> None:
    """Raises SettingError where traces are asked for and cannot be sent."""
    if asked and not all(map(_is_there, PACKAGES)):
        problem = "true needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"
        raise SettingError("logs.traces", problem, "Install them: pip install redraft[traces]")


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def begin(run: str, part: str) -> None:
    """From now on this process sends what is recorded."""
    global _sender
    _sender = _Sender(run, part)


def record(name: str, span: Span, lasted_s: float, parent: Span | None = None, **told: Any) -> None:
    """A span that ends now, after so long. `told` are `links` to other spans, `error`, text where it failed, and facts
    of it, which are sent as redraft.NAME."""
    if _sender is not None:
        _sender.record(name, span, lasted_s, parent, **told)


def flush() -> None:
    """Sends what was recorded, within FLUSH_S: what is not sent by then is lost."""
    if _sender is not None:
        flushing = threading.Thread(target=_sender.flush, name="traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


class _Given(threading.local):
    """Ids of the span that this thread begins next, as the SDK asks for them."""

    span = Span(bytes(16), bytes(8))

    def generate_trace_id(self) -> int:
        return int.from_bytes(self.span.trace)

    def generate_span_id(self) -> int:
        return int.from_bytes(self.span.id)

    def is_trace_id_random(self) -> bool:
        return True  # digests


class _Sender:
    """Makes spans, and sends them in batches by a thread of the SDK's; what it cannot send it drops."""

    def __init__(self, run: str, part: str):
        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api, self._given = trace, _Given()
        own = {"service.name": "redraft", "service.instance.id": part, "redraft.run": run, "redraft.part": part}
        given = OTELResourceDetector().detect().attributes
        resource = Resource.create({key: value for key, value in own.items() if key not in given})
        ids: Any = self._given  # has the methods of an IdGenerator
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=ids)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        self._tracer = self._provider.get_tracer("redraft")

    def record(
        self,
        name: str,
        span: Span,
        lasted_s: float,
        parent: Span | None,
        links: Iterable[Span] = (),
        error: str = "",
        **facts: Fact,
    ) -> None:
        ended_ns = time.time_ns()
        self._given.span = span
        made = self._tracer.start_span(
            name,
            self._api.set_span_in_context(self._api.NonRecordingSpan(self._context(parent))) if parent else None,
            attributes={f"redraft.{key}": fact for key, fact in facts.items()},
            links=[self._api.Link(self._context(link)) for link in links],
            start_time=ended_ns - int(lasted_s * 1e9),
        )
        if error:
            made.set_status(self._api.StatusCode.ERROR, error)
        made.end(ended_ns)

    def _context(self, span: Span) -> Any:
        """Of a span that another part made; whether it was kept is a matter of its trace."""
        trace_id, flags = int.from_bytes(span.trace), self._api.TraceFlags
        kept = self._provider.sampler.should_sample(None, trace_id, "").decision.is_sampled()
        flag = flags(flags.SAMPLED if kept else flags.DEFAULT)
        return self._api.SpanContext(trace_id, int.from_bytes(span.id), is_remote=True, trace_flags=flag)

    def flush(self) -> None:
        self._provider.force_flush()


def _exporter() -> Any:
    """That of OTLP over HTTP, of which it is said once when it fails, and when it works again."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it says so again with each batch

    class Exporter(SpanExporter):
        def __init__(self) -> None:
            self._sends, self._lost = OTLPSpanExporter(), 0

        def export(self, spans: Any) -> SpanExportResult:
            result = self._sends.export(spans)
            if result is SpanExportResult.SUCCESS:
                if self._lost:
                    log.warning("traces are sent again; %d spans were lost", self._lost)
                self._lost = 0
                return result
            if not self._lost:
                log.warning("traces cannot be sent, see OTEL_EXPORTER_OTLP_ENDPOINT; the run goes on without them")
            self._lost += len(spans)
            return result

        def shutdown(self) -> None:
            self._sends.shutdown()

    return Exporter()
