"""What a machine can do at best, the picture of a run, and what is seen of it meanwhile."""

import ctypes
import errno
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from palm.cli import display
from palm.cli.display import _line
from palm.recipes import Outcome, Recipe
from palm.training import hardware
from palm.training.curves import running_mean
from palm.training.hardware import peak_flops
from palm.training.measures import Measures
from palm.training.plot import plot_run
from palm.training.run_folder import PLOT, Run

EACH, MEAN, VALIDATION = ((158, 197, 232), (23, 100, 171), (217, 72, 15))


def nothing(size):
    """Products that take no time, and are not computed."""
    return lambda: None


@pytest.mark.parametrize(
    ("device", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA GH200 480GB", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("TPU v4", 275e12, None),
        ("TPU v5 lite", 197e12, None),
        ("TPU v5e", 197e12, None),
        ("TPU v5", 459e12, None),
        ("TPU v5p", 459e12, None),
        ("TPU v6 lite", 918e12, None),
        ("TPU v6e", 918e12, None),
    ],
)
def test_a_known_device_has_its_makers_peak(device, bfloat16, float32, monkeypatch):
    monkeypatch.setattr(hardware, "_measured", lambda products: pytest.fail("it was measured"))
    assert peak_flops(device, "bfloat16", nothing) == bfloat16
    assert peak_flops(device, "float32", nothing) == float32
    assert peak_flops(device, "float64", nothing) is None


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 4090",
        "NVIDIA RTX A1000 Laptop GPU",
        "TPU v4 lite",
        "TPU v4e",
        "",
        "TPU v9",
        "CPU 2",
        "cuda",
    ],
)
def test_nobody_knows_the_peak_of_an_unknown_device(device):
    assert peak_flops(device, "bfloat16", nothing) is None


@pytest.mark.parametrize("device", ["cpu", "CPU"])
def test_a_cpu_is_measured_by_the_products_that_are_given(device, monkeypatch):
    monkeypatch.setattr(hardware, "_measured", lambda products: 12.5 if products is nothing else 0)
    found = {peak_flops(device, precision, nothing) for precision in ("bfloat16", "float32")}
    assert found == {12.5}
    assert peak_flops(device, "float64", nothing) is None  # a float32 product tells nothing of it
    assert peak_flops(device, "float32") is None


def test_the_measurement_counts_two_operations_a_product_and_takes_the_best_time(monkeypatch):
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 28.0])
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert hardware._measured(nothing, size=10, repeats=3) == 2 * 10**3 / 2.0


def test_a_machine_reaches_what_it_is_measured_at():
    """No machine multiplies at less than 10⁸ or more than 10¹⁵ FLOP/s."""
    calls = []

    def products(size):
        matrix = np.ones((size, size), np.float32)
        return lambda: calls.append(matrix @ matrix)

    assert 1e8 < hardware._measured(products, size=128, repeats=3) < 1e15
    assert len(calls) == 4  # the first one is not counted


def test_the_running_mean_is_that_of_the_last_fiftieth():
    losses = np.random.default_rng(0).uniform(1, 5, 230).tolist()
    for count in (0, 1, 2, 19, 20, 39, 40, 59, 230):
        some = losses[:count]
        span = max(1, int(count * 0.05))
        expected = [np.mean(some[max(0, i + 1 - span) : i + 1]) for i in range(count)]
        np.testing.assert_allclose(running_mean(np.array(some)), expected, rtol=1e-12)


def folder(tmp_path, entries, name="run") -> Run:
    run = Run(tmp_path / name)
    run.path.mkdir()
    for entry in entries:
        run.log(entry)
    return run


def picture(run: Run) -> np.ndarray:
    """The pixels of a run's plot. Shape (height, width, 3), 0 to 255."""
    from matplotlib.image import imread

    path = plot_run(run)
    assert path == run.path / PLOT
    assert [entry.name for entry in run.path.iterdir() if entry.suffix == ".png"] == [PLOT]
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (1200, 675)
    return np.round(imread(path)[:, :, :3] * 255).astype(int)


def count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(2).sum())


ENTRIES = [{"step": step, "loss": 5 - 0.04 * step + step % 7 / 5} for step in range(1, 101)]


def test_a_falling_loss_falls_in_the_picture(tmp_path):
    pixels = picture(folder(tmp_path, ENTRIES))
    rows, columns = np.nonzero((pixels == MEAN).all(2))
    inside = columns < 700  # left of the legend, whose line has that colour too
    assert np.corrcoef(rows[inside], columns[inside])[0, 1] > 0.9
    assert count(pixels, EACH) > 50
    assert 0.5 < (pixels == 255).all(2).mean() < 0.99


def test_the_validation_loss_is_shown_where_there_is_one(tmp_path):
    run = folder(tmp_path, ENTRIES[:10])
    assert count(picture(run), VALIDATION) == 0
    for step in (11, 12):
        run.log({"step": step, "loss": 4.0, "val_loss": 4.5})
    assert count(picture(run), VALIDATION) > 50


@pytest.mark.parametrize("entries", [[], [{"step": 1, "loss": 2.0, "val_loss": 2.0}]])
def test_a_run_of_hardly_a_step_has_a_picture(tmp_path, entries):
    assert picture(folder(tmp_path, entries)).shape == (675, 1200, 3)


def test_a_folder_may_have_any_name(tmp_path):
    picture(folder(tmp_path, ENTRIES, "cost $_$ run"))


def test_drawing_looks_for_no_display(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # whoever imports it gets an ImportError
    plot_run(folder(tmp_path, []))


FULL = {
    "step": 4,
    "loss": 1.23456,
    "bits_per_byte": 1.7811,
    "val_loss": 2.0,
    "tokens_per_s": 12345.6,
    "mfu": 0.4567,
}


def test_a_line_tells_what_was_measured():
    whole = "loss 1.2346 nats  1.781 bits/byte  validation 2.0000 nats  12,346 tokens/s  MFU 45.7%"
    assert _line(FULL) == whole
    assert _line({"step": 4, "loss": 1.0, "tokens_per_s": 5.0}) == "loss 1.0000 nats  5 tokens/s"


def test_what_stands_beside_the_bar_leaves_it_room_in_80_columns():
    long = {**FULL, "loss": 10.0, "bits_per_byte": 14.4, "tokens_per_s": 123_456.0}
    assert len(display._brief(long)) + len(" 100000/100000 ") + len(" 0:00:00") <= 78


def test_in_a_pipe_there_is_a_line_at_each_validation_and_each_twentieth_and_nothing_else(capsys):
    with display.display(400) as on_step:
        for step in range(1, 25):
            entry = {"step": step, "loss": 1.0, "tokens_per_s": 5.0}
            on_step({**entry, "val_loss": 2.0} if step in (2, 4) else entry)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line]
    measured = [f"step {step}/400  loss 1.0000 nats  validation 2.0000 nats  5 tokens/s" for step in (2, 4)]
    assert lines == [*measured, "step 20/400  loss 1.0000 nats  5 tokens/s"]


def test_a_display_that_fails_is_told_once_and_does_not_end_the_run(capsys, monkeypatch):
    def fail(entry):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(display, "_line", fail)
    with display.display(4) as on_step:
        for step in range(1, 5):
            on_step({**FULL, "step": step})
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line] == ["the display failed at step 1: [Errno 32] Broken pipe"]


def test_standard_error_that_takes_nothing_is_left_alone(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    display.tell("a", "b")
    monkeypatch.setattr(sys, "stderr", None)
    display.tell("a", "b")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt")
def test_a_process_that_keeps_its_memory_is_not_given_it_page_by_page_again():
    script = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from palm.training.hardware import keep_memory
    keep_memory()
for step in range(5):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = np.ones(1 << 23)
    del array
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    small = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}  # pages, which NumPy would make rare
    faults = {}
    for mode in ("keep", "leave"):
        command = [sys.executable, "-c", script, mode]
        faults[mode] = int(subprocess.run(command, capture_output=True, check=True, env=small).stdout)
    pages = 3 * 8 * (1 << 23) // resource.getpagesize()
    assert faults["keep"] < pages // 100
    if not huge_pages_are_always_on():
        assert faults["leave"] > pages // 2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt")
def test_holes_that_freed_memory_left_in_a_grown_heap_go_back_to_the_system_once():
    script = """
import resource, sys
import numpy as np
from palm.training.hardware import give_back_holes, keep_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

def hole(megabytes):
    freed = np.ones(megabytes << 17)
    held.append(np.ones(1 << 17))  # behind it, so that what is freed is not the end of the heap
    del freed

held = []
if sys.argv[1] == "keep":
    keep_memory()
sizes = []
for megabytes in (128, 64):
    hole(megabytes)  # the second one fits into the first, and the heap does not grow
    sizes.append(resident())
    give_back_holes()
    sizes.append(resident())
print(*sizes)
"""

    def sizes(mode: str) -> list[int]:
        command = [sys.executable, "-c", script, mode]
        return [int(size) for size in subprocess.run(command, capture_output=True, check=True).stdout.split()]

    grown, given_back, filled, kept = sizes("keep")
    assert grown - given_back > 100
    assert filled - given_back > 50
    assert kept == filled
    grown, as_before, *_ = sizes("leave")
    assert grown == as_before


def huge_pages_are_always_on() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[always]" in setting.read_text()


def test_a_peak_that_a_step_exceeds_is_none():
    measures = Measures(Recipe(batch=2, length=8), 1.0)
    measures.mfu_per_rate = 0.01
    outcome = Outcome(1.0, 1.0, [])
    assert measures.of_step(1, outcome, 1.0)["mfu"] == 0.16
    assert "mfu" not in measures.of_step(2, outcome, 0.1)
    assert "mfu" not in measures.of_step(3, outcome, 1.0)
