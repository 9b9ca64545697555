"""Logs: one line an event, with time, run, part and cause, in a file for each part of a run; for programs also as
JSON."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protocols import log_facts, strict_json, traces

if TYPE_CHECKING:
    from redraft.config import LogSettings

LogFormat = Literal["text", "json"]
FORMAT = "%(asctime)s %(levelname).1s {run} {part}: %(message)s"
NOISY = (
    *("DeepSpeed", "vllm", "transformers", "httpx", "ray", "torch", "datasets", "filelock", "fsspec", "urllib3"),
    *("s3fs", "botocore", "httpx2"),
)


class JsonLines(logging.Formatter):
    """A line of JSON for each record: time in UTC, level, logger, run, part, message, error where there is one, and the
    facts that hold (see protocols.log_facts)."""

    def __init__(self, run: str, part: str):
        super().__init__()
        self._of = {"run": run, "part": part}

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {"time": f"{seconds}.{int(record.msecs):03}Z", "level": record.levelname.lower()}
        line |= {"logger": record.name, **self._of, **log_facts.known(), "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return strict_json.dumps(line, ensure_ascii=False, default=str)


def to_file(folder: Path, run: str, part: str, form: LogFormat = "text") -> None:
    """Sends this process's log lines to logs/PART.log in the run folder, and third-party ones from errors up; as json
    they go to its standard output, too."""
    file = logging.FileHandler(folder / "logs" / f"{part}.log")
    file.setFormatter(_text(run, part))
    handlers: list[logging.Handler] = [file]
    if form == "json":
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[-1].setFormatter(JsonLines(run, part))
    _install(handlers)


def of_part(folder: Path, run: str, part: str, settings: LogSettings) -> None:
    """Begins the log of this process, a part of a run, and its spans where they are asked for."""
    to_file(folder, run, part, settings.format)
    if settings.traces:
        traces.begin(run, part)


def to_terminal(run: str, level: int = logging.WARNING, form: LogFormat = "text", part: str = "redraft") -> None:
    """Sends the command's own log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    handler.setFormatter(JsonLines(run, part) if form == "json" else _text(run, part))
    _install([handler])


def printable(text: str) -> str:
    """What a model or an environment wrote, without what a terminal would obey; lines stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _from_errors_up(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _text(run: str, part: str) -> logging.Formatter:
    return logging.Formatter(FORMAT.format(run=run.replace("%", "%%"), part=part))


def _install(handlers: list[logging.Handler]) -> None:
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    logging.getLogger("redraft").setLevel(logging.INFO)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_from_errors_up)  # when it is imported it sets its own level
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|vllm|transformers|deepspeed|ray)\b")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
