"""gpu.sh's driver, its comparisons, the wheels it takes, and the words for what was measured."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cases import ROOT

from palm import PaLMConfig

BENCHMARKS = ROOT / "benchmarks"
MODULES = ("gpu_part", "gpu_groups", "gpu_speed", "wheels", "gpu", "costs")
CONFIG = PaLMConfig(num_tokens=5, dim=4, depth=2, heads=2, dim_head=6).resolve("jax")


@pytest.fixture(scope="module")
def gpu():
    """The benchmark's modules by name, which its scripts find beside themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        before = set(sys.modules)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
                del sys.modules[name]


PART = """
import json, os, sys, time
out, device = sys.argv[sys.argv.index("--out") + 1], sys.argv[sys.argv.index("--device") + 1]
with open(f"{out}/{sys.argv[1]}_{device}.json", "w") as file:
    json.dump({"lines": [f"{sys.argv[1]} on {os.environ.get('JAX_PLATFORMS')}"]}, file)
print("words", flush=True)
{what}
"""


@pytest.fixture
def driven(gpu, tmp_path, monkeypatch, capfd):
    """Run the driver on planted parts, {name: (code, seconds)}; gives its status, its summary, its output."""

    def run(parts, *arguments, torch="cpu", jax="cpu"):
        monkeypatch.setattr(gpu.gpu, "HERE", tmp_path)
        monkeypatch.setattr(gpu.gpu, "devices", lambda env: {"torch": torch, "jax": jax})
        monkeypatch.setattr(gpu.gpu, "GRACE", 0.5)
        planted = {}
        for name, (code, seconds) in parts.items():
            (tmp_path / f"{name}.py").write_text(PART.replace("{what}", code))
            planted[name] = gpu.gpu.Part((f"{name}.py", name), seconds)
        monkeypatch.setattr(gpu.gpu, "PARTS", planted)
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as ended:
            gpu.gpu.main()
        signal.signal(signal.SIGTERM, before)
        found = tmp_path / "out" / "summary_cpu.json"
        return (
            ended.value.code,
            json.loads(found.read_text()) if found.exists() else None,
            capfd.readouterr().out,
        )

    return run


def test_a_part_that_fails_or_is_late_is_told_and_the_others_go_on(driven):
    late = ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)", 2)
    code, summary, output = driven(
        {"bad": ("sys.exit('out of luck')", 9), "late": late, "good": ("", 9)}, "--dry-run"
    )
    states = {name: state["state"] for name, state in summary["parts"].items()}
    assert code == 1
    assert states == {"bad": "failed", "late": "out of time", "good": "done"}
    assert "out of luck" in summary["parts"]["bad"]["output"]
    assert summary["parts"]["late"]["output"] == "words\n"
    # The table, at the end, has each part's own lines.
    assert output.count("words") == 3
    assert "    good on cpu" in output[output.index("=== cpu:") :]


def test_all_parts_done_is_status_0(driven):
    code, summary, _ = driven({"one": ("", 9), "two": ("", 9)}, "--dry-run", "--parts", "two")
    assert code == 0
    assert list(summary["parts"]) == ["two"]


def test_a_part_gets_no_more_than_is_left_and_none_starts_too_late(gpu, driven, monkeypatch):
    monkeypatch.setattr(gpu.gpu, "LEAST", 1.0)
    code, summary, _ = driven(
        {"long": ("time.sleep(60)", 50), "next": ("", 9)}, "--dry-run", "--seconds", "1.5"
    )
    assert code == 1
    assert [state["state"] for state in summary["parts"].values()] == ["out of time", "no time left"]


def test_without_an_accelerator_only_a_dry_run_runs(driven):
    code, summary, _ = driven({"one": ("", 9)})
    assert "must find an accelerator" in code
    assert summary is None


@pytest.mark.parametrize(("jax", "status"), [("cpu", 1), ("error: no plugin", 1), ("NVIDIA H100", 0)])
def test_both_frameworks_must_run_on_the_accelerator(driven, jax, status):
    """What the other one can do is measured all the same."""
    code, _, output = driven({"one": ("", 9)}, torch="NVIDIA H100", jax=jax)
    assert code == status
    assert "one            done" in output


def test_whoever_ends_the_driver_ends_the_part(gpu, tmp_path):
    """Parts have sessions of their own, so that what they start can be ended with them."""
    pid = tmp_path / "pid"
    code = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import gpu
from pathlib import Path
Path({str(tmp_path / "part.py")!r}).write_text(
    "import os, time\\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\\ntime.sleep(60)")
gpu.HERE, gpu.PARTS = Path({str(tmp_path)!r}), {{"part": gpu.Part(("part.py",), 60)}}
gpu.devices = lambda env: {{"torch": "cpu", "jax": "cpu"}}
sys.argv = ["gpu.py", "--dry-run", "--out", {str(tmp_path)!r}, "--parts", "part"]
gpu.main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as driver:
        while not (pid.exists() and pid.read_text()):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.terminate()
        assert driver.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_dry_run_hides_the_gpu(gpu):
    found = gpu.gpu.environment(dry_run=True)
    assert (found["CUDA_VISIBLE_DEVICES"], found["JAX_PLATFORMS"]) == ("", "cpu")


def test_every_side_of_a_comparison_has_its_own_name_and_is_held_against_one_of_them(gpu):
    for part in gpu.gpu_groups.PARTS.values():
        for scale in (gpu.gpu_groups.Scale(), gpu.gpu_groups.TINY):
            for found in part(scale):
                names = [spec["name"] for spec in found.sides]
                assert len(names) == len(set(names)), found.name
                assert {spec.get("against") or names[0] for spec in found.sides} <= set(names)


def test_the_sizes_have_the_parameters_they_are_called_by(gpu):
    sizes = {"150 M": 150e6, "400 M": 400e6, "1 B": 1e9}
    groups = [g for g in gpu.gpu_groups.mfu(gpu.gpu_groups.Scale()) if g.case == "sizes"]
    assert [group.name for group in groups] == [
        "1 B, rotary",
        "400 M, rotary",
        "150 M, rotary",
        "400 M, ALiBi",
    ]
    for group in groups:
        for spec in group.sides:
            config = PaLMConfig.from_dict(spec["config"])
            assert gpu.costs.matmul_parameters(config) == pytest.approx(
                sizes[group.name.split(",")[0]], rel=0.1
            )
            assert (spec["length"], spec["precision"]) == (2048, "bfloat16")


def side(name, seconds, device, **more):
    spec = {"name": name, "model": "palm", "job": "training", "precision": "bfloat16", "batch": 2}
    spec |= {"length": 10, "config": CONFIG.to_dict()}
    return {"spec": spec, "start": {"device": device}, "runs": [{"seconds": s} for s in seconds], **more}


def planted(case, *sides):
    return {"case": case, "name": "here", "sides": {one["spec"]["name"]: one for one in sides}}


def test_utilisation_is_of_the_makers_peak_or_of_the_best_product_here(gpu):
    seconds = gpu.costs.mfu(CONFIG, 2, 10, 1.0, 1.0) / 989e12 / 0.5  # half of an H100's peak
    limits = {"bfloat16: a": [2 * 989e12], "bandwidth: b": [1.0]}
    for device, told in (
        ("NVIDIA H100 80GB HBM3", "MFU 50.0% of the maker's peak"),
        ("Nobody's", "MFU 25.0% of the best product measured"),
    ):
        words = list(gpu.gpu_speed.lines(planted("sizes", side("palm", [seconds], device)), limits))
        assert told in words[1]
    assert "MFU" not in list(gpu.gpu_speed.lines(planted("sizes", side("palm", [1.0], "Nobody's")), {}))[1]


def test_a_new_token_is_told_by_its_rate_and_its_share_of_the_bandwidth(gpu):
    one = side("palm", [0.5], "cpu")
    one["spec"]["job"] = "decode"
    bytes_read = gpu.costs.decode_bytes(CONFIG, "bfloat16", 2, 10)
    limit = {
        "spec": {"name": "limit", "model": "limits"},
        "runs": [{"rates": {"bandwidth: a": 8 * bytes_read}}],
    }
    words = list(gpu.gpu_speed.lines(planted("decode", one, limit), {}))
    assert words[1].split()[1:] == [
        "500.000",
        "ms",
        "a",
        "token,",
        "4",
        "tokens/s,",
        "25%",
        "of",
        "the",
        "bandwidth",
    ]


def test_what_failed_and_what_is_left_out_are_told(gpu):
    failed, out = side("a", [], "cpu", failed="SIGKILL"), side("b", [], "cpu", left_out="not installed")
    words = list(gpu.gpu_speed.lines(planted("sizes", failed, out), {}))
    assert [line.split(maxsplit=1)[1] for line in words[1:]] == ["FAILED: SIGKILL", "left out: not installed"]


def wheel(folder, name, version, *requires):
    """The metadata of a wheel, unpacked as it is read: as a path on which distributions are found."""
    own = folder / f"{name}.whl" / f"{name}-{version}.dist-info"
    own.mkdir(parents=True)
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (own / "METADATA").write_text("\n".join(lines) + "\n")
    return own.parent


def test_only_wheels_of_what_is_absent_or_too_old_are_taken_and_of_what_they_need(gpu, tmp_path, monkeypatch):
    here = {"numpy": "2.1", "old": "1.0", "deep": "3.0"}
    monkeypatch.setattr(gpu.wheels, "installed", here.get)
    carried = {
        "numpy": wheel(tmp_path, "numpy", "2.4"),
        "old": wheel(tmp_path, "old", "2.0", "deep>=2", "new; extra == 'x'"),
        "absent": wheel(tmp_path, "absent", "1.0", "needed>=1"),
        "needed": wheel(tmp_path, "needed", "1.0", "absent"),
    }
    wanted = ["numpy>=2.0", "old>=1.5", "absent", "other; python_version < '3'"]
    found = [path.name for path in gpu.wheels.chosen(wanted, carried)]
    assert sorted(found) == ["absent.whl", "needed.whl", "old.whl"]


def test_what_is_needed_and_not_carried_is_told(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu.wheels, "installed", lambda name: "2.0")
    assert list(gpu.wheels.chosen(["torch>=2.11"], {})) == []
    assert "torch>=2.11 is needed; got 2.0" in capsys.readouterr().out


def test_every_requirement_has_a_pin_to_be_carried_by(gpu):
    from packaging.requirements import Requirement

    names = {gpu.wheels.plain(Requirement(line).name) for line in gpu.wheels.requirements()}
    names |= {gpu.wheels.plain(name) for name in gpu.wheels.NEEDED_BY_THEM}
    assert names - gpu.wheels.NOT_CARRIED <= set(gpu.wheels.pins())
