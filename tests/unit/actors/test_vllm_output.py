"""What processes write while an engine starts is read for how far they are, and for why they ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from actors.engines.vllm_output import Output

SAID = """
(EngineCore pid=7) INFO 11-28 09:54:01 [model_runner.py:1100] Starting to load model /models/one...
(EngineCore pid=7) INFO 11-28 09:54:04 [model_runner.py:1200] Model loading took 1.2 GiB memory and 3.1 seconds
(EngineCore pid=7) ERROR 11-28 09:54:05 [core.py:1100] EngineCore failed to start.
(EngineCore pid=7) ERROR 11-28 09:54:05 [core.py:1100]   File "sampler.py", line 3
(EngineCore pid=7) ERROR 11-28 09:54:05 [core.py:1100] ModuleNotFoundError: No module named 'flashinfer'
RuntimeError: Worker initialization failed. See stack trace for root cause.
"""


def write(text: str) -> None:
    """From a process that starts here."""
    program = "import sys; sys.stderr.write(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, text], check=True, timeout=60)


def test_the_root_cause_is_found_among_its_consequences():
    with Output() as output:
        write(SAID)
    assert output.cause == "ModuleNotFoundError: No module named 'flashinfer'"
    assert output.end.splitlines()[-2].strip() == 'File "sampler.py", line 3'


def test_how_far_a_start_is_follows_from_what_was_said_last():
    with Output() as output:
        assert output.phase == ""
        write("\n".join(SAID.splitlines()[:2]) + "\n")
        assert output.phase == "loading weights"
        write("\n".join(SAID.splitlines()[2:]))
    assert output.phase == "compiling"


def test_without_an_error_the_last_line_is_the_cause_and_own_outputs_come_back():
    before = [os.fstat(number).st_ino for number in (1, 2)]
    with Output() as output:
        assert [os.fstat(number).st_ino for number in (1, 2)] != before
        assert output.cause == "it wrote nothing"
        write("Illegal instruction\n\n")
    assert output.cause == "Illegal instruction"
    assert [os.fstat(number).st_ino for number in (1, 2)] == before


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.", "Raise "),
        (
            "ValueError: To serve one request (4 GiB KV cache is needed, which is larger than the available KV cache "
            "memory (2 GiB)).",
            "Raise actors.engine.gpu_memory, or lower actors.engine.max_length",
        ),
        ("ValueError: Free memory on device cuda:0 is less than desired GPU memory utilization (0.9).", "Lower "),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", "Lower actors.engine.gpu_memory or"),
    ],
)
def test_a_core_without_memory_names_our_setting_beside_its_own_words(said, cure):
    with Output() as output:
        write(f"(EngineCore pid=7) ERROR 11-28 09:54:05 [core.py:1100] {said}\nRuntimeError: see root cause above\n")
    assert output.cause.startswith(f"{said.rstrip('.')}. {cure}") and "actors.engine.gpu_memory" in output.cause
