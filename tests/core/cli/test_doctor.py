"""`palm doctor` says what is there, what is missing and what is broken, and imports no framework itself."""

import json
import os
import re
from importlib import metadata

import pytest
from cases import FRAMEWORKS, ROOT, python

import palm
from palm.cli import doctor
from palm.cli.main import main

SAID = {
    "version": "2.13.0",
    "devices": [{"name": "cpu", "memory": None}, {"name": "NVIDIA H100", "memory": 80 << 30}],
    "matmul": "float32",
    "threads": 4,
}


@pytest.fixture
def frameworks(monkeypatch):
    """Say which frameworks there are, and what they say of themselves."""
    for name in doctor._VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def there(**said):
        monkeypatch.setattr(doctor, "available_backends", lambda: tuple(said))
        monkeypatch.setattr(doctor, "_try", said.__getitem__)
        monkeypatch.setattr(doctor, "_too_old", lambda: [])

    return there


def packages(monkeypatch, **versions):
    monkeypatch.setattr(doctor, "_version", versions.get)


def told(capsys, *arguments, status=0):
    assert main(["doctor", *arguments]) == status
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_it_tells_versions_devices_precision_threads_and_memory(frameworks, capsys, monkeypatch):
    frameworks(torch=SAID)
    packages(monkeypatch, torch="2.13.0", sentencepiece="0.2.0")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    rows = dict(re.split(" {2,}", line.strip()) for line in told(capsys).splitlines() if "  " in line.strip())
    assert rows["palm"] == palm.__version__
    assert rows["torch"] == "2.13.0"
    assert rows["devices"] == "cpu, NVIDIA H100 (80 GiB)"
    assert rows["float32 products"] == "float32"
    assert (rows["threads"], rows["OMP_NUM_THREADS"]) == ("4", "3")
    assert "free of" in rows["memory"]
    assert (rows["sentencepiece"], rows["tokenizers"]) == ("0.2.0", "not installed")


def test_what_is_missing_comes_with_the_command_that_installs_it(frameworks, capsys, monkeypatch):
    frameworks(torch=SAID)
    packages(monkeypatch, torch="2.13.0", jax="0.10.2", tokenizers="0.22", sentencepiece="0.2", wandb="0.19")
    lines = told(capsys).splitlines()
    commands = [re.split(" {2,}", line.strip()) for line in lines if "pip install" in line]
    assert commands == [  # jax is there, equinox is not
        ['pip install "palm-dual[jax]"', "models in JAX"],
        ['pip install "palm-dual[tensorboard]"', "--log tensorboard"],
        ['pip install "palm-dual[hub]"', "palm import hub:…"],
        ['pip install "palm-dual[trackio]"', "--log trackio"],
        ['pip install "palm-dual[eval]"', "palm eval --tasks"],
    ]


def test_without_a_framework_it_is_no_error(frameworks, capsys, monkeypatch):
    frameworks()
    packages(monkeypatch)
    found = json.loads(told(capsys, "--json"))
    assert found["frameworks"] == {}
    assert [one["extra"] for one in found["missing"]] == list(doctor.EXTRAS)
    assert found["problems"] == []
    assert all(len(line.rstrip()) <= 80 for line in told(capsys).splitlines())


def test_the_lines_are_short_also_in_a_pipe(frameworks, capsys, monkeypatch):
    frameworks(torch=SAID, jax=SAID)
    packages(monkeypatch, torch="2.13.0")
    assert max(len(line.rstrip()) for line in told(capsys).splitlines()) <= 80


def broken(tmp_path, monkeypatch, code):
    """What it says of a torch whose import does this."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(doctor, "available_backends", lambda: ("torch",))
    return doctor.examine()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ImportError('libcudart.so: no such file')", "ImportError: libcudart.so: no such file"),
        ("import os; os.abort()", "it ended with SIGABRT"),
        ("import os; os._exit(3)", "it ended with status 3"),
        ("print('hello'); import os; os._exit(0)", "it ended with status 0"),
    ],
)
def test_a_broken_framework_is_told_with_the_reason(tmp_path, monkeypatch, code, why):
    found = broken(tmp_path, monkeypatch, code)
    assert found["frameworks"]["torch"] == {"broken": why}
    assert f"torch does not work: {why}" in found["problems"]


def test_a_framework_that_never_starts_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE", 0.5)
    found = broken(tmp_path, monkeypatch, "import time; time.sleep(600)")
    assert found["frameworks"]["torch"] == {"broken": "it took more than 0 s to start"}


def test_what_is_broken_is_a_line_and_exit_status_1(frameworks, capsys):
    frameworks(torch={"broken": "ImportError: \x1b[31mno"}, jax=SAID)
    printed = told(capsys, status=1)
    assert "problem: torch does not work: ImportError: \\x1b[31mno" in printed.splitlines()
    assert "does not work" in printed.split("jax")[0]


def test_a_package_that_is_too_old_is_told(monkeypatch):
    needed = ["numpy>=2.0", 'torch>=2.11; extra == "torch"', 'palm-dual[torch]; extra == "all"', "rich>=13.9"]
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    packages(monkeypatch, numpy="1.26.4", torch="2.11.0+cpu", rich="13.10.1")
    assert doctor._too_old() == ['numpy 1.26.4 is too old. Run: pip install "numpy>=2.0".']
    packages(monkeypatch, torch="2.9.1+cu128", rich="13.8")
    assert [one.split(" is")[0] for one in doctor._too_old()] == ["rich 13.8", "torch 2.9.1+cu128"]


def test_the_extras_are_those_of_the_project():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    lines = dict(line.split(" = ", 1) for line in section.strip().splitlines())
    del lines["all"]
    found = {name: tuple(re.findall(r'"([A-Za-z-]+)>=', packages)) for name, packages in lines.items()}
    assert found == {name: extra.packages for name, extra in doctor.EXTRAS.items()}


IMPORTS = f"""
import sys
from palm.cli.main import main
main(["doctor", "--json"])
print(*(name for name in {FRAMEWORKS} if name in sys.modules), file=sys.stderr)
"""


def test_it_imports_no_framework_itself(tmp_path, monkeypatch):
    for name in FRAMEWORKS:  # that no framework is started, which takes seconds
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    run = python(IMPORTS)
    assert run.stderr.split() == []
    assert set(json.loads(run.stdout)["frameworks"]) == {"torch", "jax"}
