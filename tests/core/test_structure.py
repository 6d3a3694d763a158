"""The shape of the source, read with `ast`: mirrored wings, one-way imports, short files, no pickle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import ROOT
from house import FILES, imports, parse

from palm.backends import ATTENTION_PATHS

WINGS = {"torch": "torch_impl", "jax": "jax_impl"}
# What each framework has of its own: kernels of attention, private parts of PyTorch, how it is traced, and
# how arrays lie and move on a mesh.
OWN_FILES = {
    "torch": {
        "paths/sdpa.py",
        "paths/flex.py",
        "private.py",
        *("pieces.py", "cut.py", "sharded.py", "read.py"),
        "trace/dispatch.py",
        "trace/state.py",
        "trace/tensors.py",
    },
    "jax": {
        *("paths/cudnn.py", "paths/splash.py", "paths/pallas.py", "paths/pallas_kernels.py", "sharding.py"),
        *("collectives.py", "compiled.py"),
        *(f"trace/{name}.py" for name in ("evaluate", "inner", "kinds", "kernels", "precision")),
    },
}
MIRRORED = sorted(
    name
    for name in (name.removeprefix("torch_impl/") for name in FILES if name.startswith("torch_impl/"))
    if name not in OWN_FILES["torch"]
)
# What one framework needs and the other does not: nn.Linear stores the transpose, torch has its own bfloat16,
# and decodes from whole weights, where JAX computes with what lies on a mesh.
# JAX's matrix products have a precision of their own, JAX has no embedding, and its weights come from keys.
# Only a jaxpr holds numbers in the dtype of what they are computed with, and must be made anew to draw anew.
# Only torch keeps numbers below 1e-38 on a CPU unless a thread is told not to.
ONE_SIDED = {
    "weights.py": {"is_linear", "to_tensor", "to_array", "gathered"},
    "model.py": {"Embedding", "full_precision", "run"},
    "linear.py": {"normal"},
    "train.py": {"flushing_thread"},
    "wrapped.py": {"weight_dtypes", "check_taps"},
    "trace/program.py": {"TracedProgram.again", "TracedProgram.settle"},
}
# The ways each framework has of being called: no method of ours.
CALLS = {"__init__", "__call__", "forward"}


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def public(body: list[ast.stmt]) -> Iterator[str]:
    """Public classes, functions and methods in their order, methods as Class.method."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
            yield from (f"{node.name}.{method}" for method in public(node.body) if method not in CALLS)
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name in CALLS):
            yield node.name


def unpickles(tree: ast.Module) -> list[str]:
    """Everything in a file that could run code it was given: pickle, eval, and loaders left to unpickle."""
    banned = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    found = [name for name in imports(tree) if name.split(".")[0] in banned]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        reads_arrays = function in ("np.load", "numpy.load") or function.endswith("read_array")
        if (
            function in ("eval", "exec", "compile")
            or options.get("allow_pickle", "not given" if reads_arrays else "False") != "False"
            or options.get("weights_only", "not given" if function == "torch.load" else "True") != "True"
        ):
            found.append(function)
    return found


def test_both_wings_have_the_same_files():
    found = {name.removeprefix("jax_impl/") for name in FILES if name.startswith("jax_impl/")}
    assert found == {*MIRRORED, *OWN_FILES["jax"]}
    assert len(MIRRORED) >= 10


@pytest.mark.parametrize("wing", WINGS)
def test_attention_paths_by_name(wing):
    """What `palm.build(attention=…)` accepts is what the wing has."""
    table = next(
        node.value
        for node in ast.walk(parse(f"{WINGS[wing]}/paths/__init__.py"))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ATTENTION"
    )
    assert ATTENTION_PATHS[wing] == ("auto", *(key.value for key in table.keys))


@pytest.mark.parametrize("file", MIRRORED)
def test_a_pair_of_files_has_the_same_public_names_in_the_same_order(file):
    torch, jax = (list(public(parse(f"{wing}/{file}").body)) for wing in WINGS.values())
    own = ONE_SIDED.get(file, set())
    assert own <= {*torch, *jax}
    assert [name for name in torch if name not in own] == [name for name in jax if name not in own]


def test_both_wings_export_the_same_names():
    exported = []
    for wing in WINGS.values():
        assigned = [node for node in parse(f"{wing}/__init__.py").body if isinstance(node, ast.Assign)]
        exported.append(ast.literal_eval(assigned[0].value))
    assert exported[0] == exported[1]
    assert len(exported[0]) > 15


@pytest.mark.parametrize("file", FILES)
def test_a_framework_is_imported_in_its_own_wing_only(file):
    found = imports(parse(file))
    inside = next((wing for wing in WINGS.values() if file.startswith(f"{wing}/")), None)
    allowed = {"torch_impl": {"torch"}, "jax_impl": {"jax", "equinox"}}.get(inside, set())
    assert packages(found) & {"torch", "jax", "jaxlib", "equinox", "optax", "flax"} <= allowed
    of_wings = {name for name in found if name.startswith(("palm.torch_impl", "palm.jax_impl"))}
    if file == "backends.py":  # for type checkers alone: tests/core/test_import.py sees what is loaded
        assert of_wings == {"palm.torch_impl", "palm.jax_impl"}
    else:
        assert all(inside and name.startswith(f"palm.{inside}") for name in of_wings)


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_unpickled_or_evaluated(file):
    assert unpickles(parse(file)) == []


def test_every_source_file_says_what_it_is():
    assert [name for name in FILES if not ast.get_docstring(parse(name))] == []


def project_files() -> Iterator[Path]:
    """Every text file of the project, and nothing that is built or cached."""
    hidden, built = (".github", ".ci"), ("build", "dist", "palm-compare", "__pycache__")
    kinds = (".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".html", ".json", ".css", ".js", ".typed", "")
    for entry in sorted(ROOT.iterdir()):
        if entry.name in built or (entry.name.startswith(".") and entry.name not in hidden):
            continue
        for file in [entry] if entry.is_file() else entry.rglob("*"):
            inside = file.relative_to(ROOT).parts
            if file.is_file() and file.suffix in kinds and not set(inside) & set(built):
                yield file


# Written so that this file does not contain what it looks for.
PRIVATE = re.compile(r"\.\./share[d]|(?<![\w.])/(?:roo[t]|wor[k])/|\.librar[y]\b")


def test_no_file_speaks_of_the_place_where_it_was_written():
    files = list(project_files())
    assert {ROOT / "README.md", ROOT / "src/palm/config.py", Path(__file__)} <= set(files)
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in files
        for match in PRIVATE.finditer(file.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("words", ["see ../share" + "d/x", "cd /wor" + "k/main", "'/roo" + "t/x'"])
def test_such_words_would_be_found(words):
    assert PRIVATE.search(words)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "eval('1')",
        "exec(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.lib.format.read_array(file)",
        "torch.load(path)",
        "load(path, weights_only=False)",
    ],
)
def test_what_unpickles_or_evaluates_would_be_found(code):
    assert unpickles(ast.parse(code))


def test_what_is_compared_between_the_wings_is_read_in_order():
    methods = "def forward(self): ...\n def b(self): ...\n def _c(self): ..."
    code = f"class A:\n {methods}\ndef d(): ...\ndef _e(): ..."
    assert list(public(ast.parse(code).body)) == ["A", "A.b", "d"]
    assert imports(ast.parse("from palm.spec import forward\nfrom palm.config import x\nimport a.b")) == {
        "palm.spec.forward",
        "palm.config",
        "a.b",
    }
