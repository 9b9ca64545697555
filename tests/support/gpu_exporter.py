"""An exporter beside a run without GPUs: what Ray, DCGM and Redraft would say of a node with two, and of a teacher.

Written by hand from the names and labels that these document; counters grow by so much a second.
"""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RAY = 'run="RUN",part="ray",name="ray-10.0.0.7",instance="RUN/ray-10.0.0.7",ip="10.0.0.7",RayNodeType="worker"'
DCGM = 'UUID="GPU-11111111-2222-3333-4444-55555555555#",pci_bus_id="00000000:0#:00.0",device="nvidia#",gpu="#"'
DCGM += (
    ',modelName="NVIDIA Test",Hostname="gpu-node-1",DCGM_FI_DRIVER_VERSION="580.1",namespace="redraft",pod="actor-#"'
)
OF_GPUS = {
    "ray_node_gpus_available": (f'{RAY},GpuIndex="#",GpuDeviceName="NVIDIA Test"', 1),
    "ray_node_gpus_utilization": (f'{RAY},GpuIndex="#",GpuDeviceName="NVIDIA Test"', 71),
    "ray_node_gram_used": (f'{RAY},GpuIndex="#",GpuDeviceName="NVIDIA Test"', 61_000),
    "ray_node_gram_available": (f'{RAY},GpuIndex="#",GpuDeviceName="NVIDIA Test"', 20_000),
    "DCGM_FI_DEV_GPU_UTIL": (DCGM, 71),
    "DCGM_FI_DEV_FB_USED": (DCGM, 61_000),
    "DCGM_FI_DEV_FB_FREE": (DCGM, 20_000),
    "DCGM_FI_DEV_POWER_USAGE": (DCGM, 412.5),
    "DCGM_FI_DEV_GPU_TEMP": (DCGM, 62),
    "DCGM_FI_DEV_XID_ERRORS": (DCGM, 0),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": (DCGM, 0.31),
    "redraft_gpu_busy_share": ('run="RUN",part="actor",name="actor-#",gpu="#"', 0.71),
    "redraft_gpu_used_bytes": ('run="RUN",part="actor",name="actor-#",gpu="#"', 61e9),
    "redraft_gpu_process_bytes": ('run="RUN",part="actor",name="actor-#",gpu="#"', 60e9),
    "redraft_gpu_memory_bytes": ('run="RUN",part="actor",name="actor-#",gpu="#"', 81e9),
    "redraft_gpu_watts": ('run="RUN",part="actor",name="actor-#",gpu="#"', 412.5),
}
"""The series of GPU 0 and of GPU 1: labels, in which # is its number, and value."""
OTHERS = {
    "redraft_controller_gpus": [('part="controller",name="controller"', 2)],
    "redraft_controller_gpu_seconds_total": [('part="controller",name="controller"', 2)],
    "redraft_learner_environment_groups": [('part="learner",name="learner-0",environment="signs"', 12)],
    "redraft_learner_environment_reward": [('part="learner",name="learner-0",environment="signs"', 0.5)],
    "redraft_evaluation_environment_accuracy": [
        ('part="controller",name="controller",occasion="before",environment="signs"', 0.5)
    ],
    "redraft_learner_reward_part": [('part="learner",name="learner-0",component="short"', 0.2)],
    "redraft_learner_kl": [('part="learner",name="learner-0"', 0.02)],
    "redraft_storage_failures_total": [('part="controller",name="controller"', 0)],
    "redraft_replay_refused_total": [('part="replay",name="replay-0",reason="peer"', 0.1)],
    "redraft_teacher_failures_total": [('part="actor",name="actor-0",reason="timeout"', 0.1)],
    "redraft_teacher_answer_seconds_bucket": [
        ('part="actor",name="actor-0",le="1.0"', 0.5),
        ('part="actor",name="actor-0",le="5.0"', 0.9),
        ('part="actor",name="actor-0",le="+Inf"', 1.0),
    ],
}
NAMES = OF_GPUS.keys() | OTHERS.keys()
COUNTER = re.compile("_(total|bucket)$")


class GpuExporter:
    """Serves these series for a run, on a port of its own, until it is closed."""

    def __init__(self, run: str):
        self._run, self._began = run, time.monotonic()
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exporter.page().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                """Scrapes are no news."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="exporter", daemon=True).start()

    def page(self) -> str:
        grown = 10 + time.monotonic() - self._began
        series = [
            (name, labels.replace("#", str(gpu)), value) for name, (labels, value) in OF_GPUS.items() for gpu in (0, 1)
        ]
        series += [(name, f'run="RUN",{labels}', value) for name, found in OTHERS.items() for labels, value in found]
        lines = [
            f"{name}{{{labels.replace('RUN', self._run)}}} {value * (grown if COUNTER.search(name) else 1)}"
            for name, labels, value in series
        ]
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
