"""Logs for people: one line an event, with time, run, part and cause, in a file for each part of a run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

FORMAT = "%(asctime)s %(levelname).1s {run} {part}: %(message)s"
NOISY = ("DeepSpeed", "vllm", "transformers", "httpx", "ray", "torch", "datasets", "filelock", "fsspec", "urllib3")


def to_file(folder: Path, run: str, part: str) -> None:
    """Sends this process's log lines to logs/PART.log in the run folder, and third-party ones from errors up."""
    handler = logging.FileHandler(folder / "logs" / f"{part}.log")
    _install(handler, run, part)


def to_terminal(run: str, level: int = logging.WARNING) -> None:
    """Sends the command's own log lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    _install(handler, run, "redraft")


def printable(text: str) -> str:
    """What a model or an environment wrote, without what a terminal would obey; lines stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _from_errors_up(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _install(handler: logging.Handler, run: str, part: str) -> None:
    handler.setFormatter(logging.Formatter(FORMAT.format(run=run, part=part)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("redraft").setLevel(logging.INFO)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_from_errors_up)  # when it is imported it sets its own level
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|vllm|transformers|deepspeed|ray)\b")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
