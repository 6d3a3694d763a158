"""The processes that palm starts: what they import, and that they and their folders end with the command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cases import python_path

PALM = [sys.executable, "-P", "-m", "palm"]
TINY = {"preset": "tiny", "dim": 16, "depth": 1, "heads": 2, "dim-head": 8, "length": 16}
SMALL = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
# Large enough to be at work when the signal comes.
LONG = ["--length", "512", "--batch", "8"]
linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the processes of Linux")


def environment(temporary: Path, *folders: Path) -> dict[str, str]:
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "PYTHONPATH": python_path(*folders), "TMPDIR": str(temporary)}


def running(temporary: Path) -> list[int]:
    """The workers whose temporary folder this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            own = f"TMPDIR={temporary}\0".encode() in (process / "environ").read_bytes()
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if own and b"palm.parity.run." in words:
            found.append(int(process.name))
    return found


def until(happened, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextmanager
def started(arguments: list[str], tmp_path: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    """The command, as soon as so many children of it run; it is killed at the end."""
    process = subprocess.Popen(
        [*PALM, *arguments, "--out", str(tmp_path / "out")],
        env=environment(tmp_path / "temporary"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            until(lambda: len(running(tmp_path / "temporary")) == count or process.poll() is not None)
            yield process
        finally:
            process.kill()


def ended(arguments: list[str], tmp_path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        [*PALM, *arguments],
        cwd=cwd,
        env=environment(tmp_path / "temporary"),
        capture_output=True,
        text=True,
        check=False,
    )


def test_children_import_nothing_from_the_working_folder(tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the working folder was imported')")
    done = ended(["record", "torch", *SMALL, "--out", "bundle"], tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_finds_its_neighbours_and_not_those_of_the_working_folder(tmp_path):
    programs, folder = tmp_path / "programs", tmp_path / "folder"
    programs.mkdir()
    folder.mkdir()
    (folder / "numpy.py").write_text("raise SystemExit('the working folder was imported')")
    (programs / "helper.py").write_text("def double(x):\n    return x * 2\n")
    (programs / "program.py").write_text("import helper\n\ndef f(x):\n    return helper.double(x)\n")
    inputs = tmp_path / "x.npy"
    make = f"import numpy as np; np.save({str(inputs)!r}, np.arange(4.0))"
    subprocess.run([sys.executable, "-c", make], check=True)
    side = f"{programs / 'program.py'}:f"
    arguments = ["compare", side, side, "--inputs", str(inputs), "--out", str(tmp_path / "out")]
    done = ended(arguments, tmp_path, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "temporary").iterdir()) == []


@linux
@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(signal.SIGTERM, 143, "palm: terminated\n"), (signal.SIGINT, 130, "palm: interrupted\n")],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_ends_compare_with_its_children_and_folders(number, status, line, tmp_path):
    with started(["compare", *LONG], tmp_path, 2) as process:
        process.send_signal(number)
        said, complained = process.communicate(timeout=30)
    assert (process.returncode, said, complained) == (status, "", line)
    until(lambda: running(tmp_path / "temporary") == [])
    assert list((tmp_path / "temporary").iterdir()) == []


@linux
def test_children_end_with_a_killed_command_and_the_next_one_removes_its_folder(tmp_path):
    with started(["record", "torch", *LONG], tmp_path, 1):
        pass
    until(lambda: running(tmp_path / "temporary") == [])
    [left] = (tmp_path / "temporary").iterdir()
    foreign = tmp_path / "temporary" / "palm-of-mine"
    foreign.mkdir()
    with started(["record", "torch", *LONG], tmp_path, 1):
        others = {path.name for path in foreign.parent.iterdir()} - {foreign.name}
    assert len(others) == 1
    assert left.name not in others
    until(lambda: running(tmp_path / "temporary") == [])


AT_IMPORT = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
"""


@pytest.mark.parametrize("name", ["palm.config", "numpy", "palm.cli", "tyro", "palm.cli.compare", "jinja2"])
def test_an_interrupt_while_the_command_is_loaded_gives_one_line_and_130(name, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT.format(name=name))
    done = subprocess.run(
        [*PALM, "compare", "--help"],
        cwd=tmp_path,
        env=environment(tmp_path / "temporary", tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "palm: interrupted\n")


def test_an_interrupt_of_the_installed_command_is_the_same(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT.format(name="palm.config"))
    script = tmp_path / "palm"
    script.write_text("import sys\nfrom palm.cli.main import main\nsys.exit(main())\n")
    done = subprocess.run(
        [sys.executable, "-P", str(script), "--version"],
        env=environment(tmp_path / "temporary", tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "palm: interrupted\n")


def test_a_program_that_imports_palm_keeps_its_interrupts():
    code = "import signal; import palm; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
