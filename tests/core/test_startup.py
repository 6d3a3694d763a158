"""What palm loads when: little at first, each part when it is asked for, the same names in every order."""

import ast
import inspect
import subprocess
import sys
from pkgutil import resolve_name

import pytest
from cases import FRAMEWORKS, ROOT, python

import palm
from palm.cli.main import COMMANDS, main

DEAR = (
    *FRAMEWORKS,
    "matplotlib",
    "rich",
    "safetensors",
    "palm.checkpoint.checkpoint",
    "palm.cli.train",
    "palm.cli.compare",
    "palm.parity.compare",
    "palm.cli.record",
    "palm.cli.models",
    "palm.cli.info",
    "palm.cli.text",
    "palm.cli.data",
    "palm.training.train",
)
REPORT = """
import sys
print(*(name for name in {names} if name in sys.modules), file=sys.stderr)
"""
COMMAND = """
import palm.cli.main
try:
    palm.cli.main.main({arguments})
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def loaded_by(code: str, names: tuple[str, ...] = DEAR) -> set[str]:
    """Which of the modules a fresh Python has loaded after `code`."""
    run = python(code + REPORT.format(names=names))
    assert run.returncode == 0, run.stderr
    return set(run.stderr.split())


def loaded_by_command(*arguments: str, names: tuple[str, ...] = DEAR) -> set[str]:
    return loaded_by(COMMAND.format(arguments=list(arguments)), names)


def test_importing_palm_loads_nothing_dear():
    assert loaded_by("import palm", (*DEAR, "tyro", "numpy")) == set()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("use", "loads"),
    [
        ("palm.save", {"palm.checkpoint.checkpoint"}),
        ("palm.compare", {"rich", "palm.checkpoint.checkpoint", "palm.parity.compare"}),
        ("import palm.parity.finding", set()),
        ("palm.train", {"palm.checkpoint.checkpoint", "palm.training.train"}),
        (
            "from palm import *",
            {
                "rich",
                "palm.checkpoint.checkpoint",
                "palm.parity.compare",
                "palm.training.train",
            },
        ),
        ("import palm.training.plot", {"matplotlib", "palm.checkpoint.checkpoint"}),
    ],
)
def test_a_name_loads_its_own_part_when_it_is_used(use, loads):
    assert loaded_by(f"import palm\n{use}") == loads


def test_help_and_version_load_no_command():
    for flag in ("--help", "--version"):
        loaded = loaded_by_command(flag, names=(*DEAR, "numpy"))
        assert loaded <= {"rich"}  # which some versions of tyro draw help with


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("compare", "palm.cli.compare"),
        ("record", "palm.cli.record"),
        ("train", "palm.cli.train"),
        ("generate", "palm.cli.text"),
        ("data", "palm.cli.data"),
        ("import", "palm.cli.models"),
        ("info", "palm.cli.info"),
    ],
)
def test_a_command_loads_its_own_module_only(command, module):
    commands = {module for module in DEAR if module.startswith("palm.cli.")}
    assert loaded_by_command(command, "--help") & commands == {module}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "order",
    [
        "import palm",
        "import palm.parity.recording.bundle as b\nassert b.write_bundle",
        "import palm.recipes as r\nassert r.RECIPES",
        "from palm.parity.recording.bundle import write_bundle\nimport palm",
        "import palm\nimport palm.parity.compare, palm.training.train, palm.generation.generate",
        "import palm\npalm.compare\nfrom palm.parity import compare as module\nassert module.judged",
        "from palm import compare, recipe\nimport palm.recipes, palm.parity.recording.recording",
    ],
)
def test_a_name_is_a_function_or_a_module_in_every_order_of_imports(order):
    code = f"""
{order}
import palm
from palm.parity.compare import compare as itself
assert palm.compare is itself, palm.compare
assert palm.recipe("adamw", steps=3).steps == 3
"""
    run = python(code)
    assert run.returncode == 0, run.stderr


def test_no_name_is_both_offered_and_a_module():
    modules = {file.name.removesuffix(".py") for file in (ROOT / "src/palm").iterdir()}
    assert set(palm.__all__) & modules == set()


def read_twice(package: str) -> tuple[dict[str, str], dict[str, str]]:
    """The names that load later: as a type checker reads them, and as Python does."""
    tree = ast.parse((ROOT / "src" / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname or alias.name: f"{line.module}:{alias.name}"
        for line in node.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    table = next(found for found in ast.walk(ast.Module(node.orelse, [])) if isinstance(found, ast.Dict))
    return imported, ast.literal_eval(table)


@pytest.mark.parametrize("package", ["palm"])
def test_a_type_checker_sees_the_names_that_python_finds(package):
    imported, found = read_twice(package)
    assert imported == found
    assert len(found) > 10
    module = sys.modules[package]
    assert set(found) <= set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is resolve_name(home) for name, home in found.items())
    assert set(found) <= set(vars(module))  # and they are not asked for again


def test_a_module_of_palm_is_found_without_an_import_of_its_own():
    run = python("import palm\nprint(palm.backends.keep_programs.__name__, palm.memory.__name__)")
    assert run.stdout.split() == ["keep_programs", "palm.memory"], run.stderr


@pytest.mark.parametrize("package", ["palm"])
def test_a_name_that_is_not_there_is_missed_as_in_any_module(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'paint'"):
        _ = sys.modules[package].paint
    with pytest.raises(ImportError, match="cannot import name 'paint'"):
        exec(f"from {package} import paint")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_summary_is_the_first_line_of_its_commands_help(name):
    where, summary = COMMANDS[name]
    assert summary == inspect.getdoc(resolve_name(where)).splitlines()[0]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_overview_has_every_command_and_its_summary(flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([flag])
    assert not stop.value.code
    printed = capsys.readouterr()
    assert printed.err == ""
    words = " ".join(printed.out.translate({ord(edge): " " for edge in "│|"}).split())
    assert f"usage: palm [-h] {{{','.join(COMMANDS)}}}" in words
    assert all(f"• {name} {summary}" in words for name, (_, summary) in COMMANDS.items())
    assert max(map(len, printed.out[printed.out.index("options") :].splitlines())) <= 80


@pytest.mark.parametrize("arguments", [[], ["paint"], ["--paint"]])
def test_without_a_command_standard_error_names_them_all(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    words = " ".join(printed.err.translate({ord(edge): " " for edge in "│|"}).split())
    assert ", ".join(COMMANDS) in words


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_of_that_command(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert not stop.value.code
    assert capsys.readouterr().out.startswith(f"usage: palm {name} [-h]")


def test_completion_for_a_shell_knows_the_options_of_every_command():
    run = [sys.executable, "-m", "palm", "--tyro-print-completion", "bash"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    for option in ("--repeat", "--complete", "--tensorboard", "--logprobs"):  # each in one command only
        assert option in done.stdout
