"""The processes of a mesh on this machine, with the environment that torchrun gives them.

They are forked from one process that has imported everything: to import torch takes longer than most tests.

    python tests/processes.py COUNT MODULE ARGUMENT
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from cases import ROOT

# More processes than a machine has GPUs.
ON_CPUS = {"CUDA_VISIBLE_DEVICES": ""}


def run_processes(count: int, module: str, argument: Any, *, timeout: float = 300) -> Any:
    """What `MODULE.main(argument)` gives in the first of `count` processes.

    Raises `AssertionError` with what all printed unless each ends well.
    """
    codes, outputs = start_processes(count, module, argument, timeout=timeout)
    assert codes == [0] * count, "\n".join(outputs)
    return json.loads(outputs[0].strip().splitlines()[-1])


def start_processes(
    count: int, module: str, argument: Any, *, timeout: float = 300
) -> tuple[list[int], list[str]]:
    """The exit codes of the processes, in the order of their ranks, and what they printed."""
    command = [sys.executable, str(Path(__file__)), str(count), module, json.dumps(argument)]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests", "tests/torch_impl"))
    environment = {**os.environ, **ON_CPUS, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    parent = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        told, _ = parent.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(parent.pid, signal.SIGKILL)  # its children, too
        parent.wait()
        raise
    codes, outputs = json.loads(told)
    return codes, outputs


def _main(count: int, module: str, argument: Any) -> None:
    run = importlib.import_module(module).main
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{rank}.txt" for rank in range(count)]
        children = [_fork(rank, file, run, argument) for rank, file in enumerate(files)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        outputs = [file.read_text() for file in files]
    print(json.dumps([codes, outputs]))


def _fork(rank: int, file: Path, run: Any, argument: Any) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        output = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        print(json.dumps(run(argument)), flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
