"""Starts a command of vivit as its user does: in two processes of four devices each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(module, *arguments, each=((), ()), environments=None):
    """Returns the two processes. each: further arguments of each. environments: of each, for a
    cluster that names the processes; None for the options of the command line."""
    at = [f"--coordinator=localhost:{free_port()}", "--processes=2"]
    started = []
    for i in range(2):
        command = [sys.executable, "-m", module, *arguments, *each[i]]
        if environments is None:
            command += [*at, f"--process={i}"]
        env = {**os.environ, **ENVIRONMENT, **(environments[i] if environments else {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    return started


def finish(processes, *, status=(0, 0)):
    """Returns (standard output, standard error) of each process, after its exit status is what it
    should be. Gloo, which connects CPUs, prints to the first, anywhere."""
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, expected, output in zip(processes, status, outputs, strict=True):
        assert process.returncode == expected, "\n".join(output)
    return outputs
