"""Programs of torch that would run code where they are read: palm refuses each before torch has read it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import draw_weights, small

import palm
from palm import CheckpointError
from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.manifest import fingerprint
from palm.files.sealed import sealed

MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = (f"data/{of}s/model_{of}s_config.json" for of in ("weight", "constant"))
Members = dict[str, bytes]


@pytest.fixture(scope="module", autouse=True)
def sizes(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("an exporter's sizes are symbols, which signatures cannot be checked against")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    config = small(num_tokens=40, depth=1)
    save_arrays(config, draw_weights(config, 0, "float32"), folder / "model")
    return palm.export(folder / "model", folder / "out", format="torch-export", length=24)


class Unpickled:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def saved(trap: Path) -> bytes:
    stream = io.BytesIO()
    torch.save((Unpickled(trap),), stream)
    return stream.getvalue()


def evaluated(trap: Path) -> str:
    return f"__import__('os').mkdir('{trap}')"


def pickled_inputs(members: Members, trap: Path) -> None:
    assert members[INPUTS] == b""  # palm pickles none
    members[INPUTS] = saved(trap)


def pickled_weight(members: Members, trap: Path, flag: str) -> None:
    about = json.loads(members[WEIGHTS])
    about["config"]["embedding.weight"] |= {"use_pickle": "FLAG", "path_name": "weight_99"}
    members[WEIGHTS] = json.dumps(about).replace('"use_pickle": "FLAG"', flag).encode()
    members["data/weights/weight_99"] = saved(trap)


def spaced(members: Members, trap: Path) -> None:
    pickled_weight(members, trap, '"use_pickle" : true')


def escaped(members: Members, trap: Path) -> None:
    pickled_weight(members, trap, r'"use\u005fpickle": true')


def a_number(members: Members, trap: Path) -> None:
    pickled_weight(members, trap, '"use_pickle": 1')


def twice(members: Members, trap: Path) -> None:
    pickled_weight(members, trap, '"use_pickle": false, "use_pickle": true')


def opaque(members: Members, trap: Path, name: str = "opaque_obj_/x") -> None:
    content = pickle.dumps(Unpickled(trap))
    meta = json.loads(members[WEIGHTS])["config"]["embedding.weight"]["tensor_meta"]
    meta |= {
        "requires_grad": False,
        "dtype": 1,
        "sizes": [{"as_int": len(content)}],
        "strides": [{"as_int": 1}],
    }
    entry = {"path_name": name, "is_param": False, "use_pickle": False, "tensor_meta": meta}
    members[CONSTANTS] = json.dumps({"config": {"x": entry}}).encode()
    members[f"data/constants/{name}"] = content


def opaque_alone(members: Members, trap: Path) -> None:
    opaque(members, trap, "opaque_obj_0")


def other_model(members: Members, trap: Path) -> None:
    """The first model is whole; torch reads every one."""
    for name in (MODEL, WEIGHTS, CONSTANTS, INPUTS):
        members[name.replace("model.", "other.").replace("model_", "other_")] = members[name]
    members[INPUTS.replace("model.", "other.")] = saved(trap)


def expression(members: Members, trap: Path) -> None:
    found = re.compile(rb'"expr_str": "[^"]*"')
    members[MODEL] = found.sub(f'"expr_str": "{evaluated(trap)}"'.encode(), members[MODEL], count=1)


def changed(made: Path, out: Path, trap: Path, change: Callable[[Members, Path], None]) -> Path:
    """A copy whose forward pass is changed and sealed again."""
    shutil.copytree(made, out)
    file = out / "forward.pt2"
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].partition("/")[0]
        members = {name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    change(members, trap)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{root}/{name}", content)
    about = json.loads((out / "program.json").read_text())
    about.pop("seal")
    about["files"][file.name] = fingerprint(file)
    (out / "program.json").write_text(sealed(about))
    return out


ATTACKS = [
    pickled_inputs,
    spaced,
    escaped,
    a_number,
    twice,
    opaque,
    opaque_alone,
    other_model,
    expression,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_would_run_code_is_refused(made, tmp_path, attack):
    trap = tmp_path / "trap"
    out = changed(made, tmp_path / "out", trap, attack)
    with pytest.raises(CheckpointError, match=r"must hold (tensors, JSON and nothing else|programs)"):
        palm.load_programs(out)
    assert not trap.exists()
    with suppress(Exception):  # whatever torch says when it has run it
        torch.export.load(out / "forward.pt2").module()(torch.zeros(2, 3, dtype=torch.long))
    assert trap.exists()  # the control


def unchanged(members: Members, trap: Path) -> None:
    pass


def test_what_was_only_written_anew_is_read(made, tmp_path):
    out = changed(made, tmp_path / "out", tmp_path / "trap", unchanged)
    found, own = (palm.load_programs(folder).forward([[1, 2]]) for folder in (out, made))
    assert (found == own).all()


def node(model: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = model["graph_module"]["graph"]["nodes"][0]
    return first


# Each is text that becomes Python's source, or names what torch looks up.
STRANGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "operation": lambda model: node(model).update(target="torch.os.getcwd"),
    "file": lambda model: node(model).update(target="torch.ops.aten.from_file.default"),
    "name": lambda model: node(model).update(name="x = print(1); x"),
    "trace": lambda model: node(model)["metadata"].update(stack_trace="File\rprint(1)"),
    "argument": lambda model: node(model).update(inputs=[{"arg": {"as_operator": "x"}}]),
    "tower": lambda model: model["graph_module"]["graph"]["sym_int_values"].update(
        x={"as_expr": {"expr_str": "Pow(Integer(9), Pow(Integer(9), Integer(9)))"}}
    ),
    "guard": lambda model: model.update(guards_code=["__import__('os').getcwd()"]),
    "tree": lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "collections.defaultdict", "context": "null", "children_spec": []}]'
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_palm_never_writes_is_refused(made, tmp_path, name):
    def change(members: Members, trap: Path) -> None:
        model = json.loads(members[MODEL])
        STRANGE[name](model)
        members[MODEL] = json.dumps(model).encode()

    out = changed(made, tmp_path / "out", tmp_path / "trap", change)
    with pytest.raises(CheckpointError, match="program forward must hold tensors, JSON and nothing else"):
        palm.load_programs(out)


def test_members_of_one_name_are_refused(made, tmp_path):
    out = changed(made, tmp_path / "out", tmp_path / "trap", unchanged)
    file = out / "forward.pt2"
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    about = json.loads((out / "program.json").read_text())
    about.pop("seal")
    about["files"][file.name] = fingerprint(file)
    (out / "program.json").write_text(sealed(about))
    with pytest.raises(CheckpointError, match="members of one name"):
        palm.load_programs(out)
