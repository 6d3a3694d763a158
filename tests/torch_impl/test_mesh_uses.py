"""What palm does with a model on a mesh of processes: gather it, go on with it, end when one process ends."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import small
from peaks import RESET
from processes import ON_CPUS, run_processes, start_processes
from started import assert_started

from palm import torch_impl
from palm.errors import BackendError
from palm.spec.mesh import Mesh, mesh_of


@pytest.fixture(scope="module")
def found() -> Any:
    return run_processes(
        4,
        "mesh_uses",
        [
            "what_is_gathered_is_what_one_device_has",
            "a_trainer_goes_on_where_another_one_stopped",
            "each_saves_and_reads_its_own_pieces",
            "a_number_of_one_process_stops_all",
            "only_the_first_is_first",
            "copies_stay_alike",
            "each_reads_its_own_rows",
            "a_run_starts_from_a_checkpoint",
            "what_stays_wide",
            "errors",
        ],
    )


@pytest.mark.parametrize("what", ["arrays", "tokens", "taps", "gradient", "convert"])
def test_what_is_gathered_is_what_one_device_has(found, what):
    assert found["what_is_gathered_is_what_one_device_has"][what]


@pytest.mark.parametrize("what", ["mesh", "weights", "moments"])
def test_a_trainer_goes_on_where_another_one_stopped(found, what):
    assert found["a_trainer_goes_on_where_another_one_stopped"][what]


@pytest.mark.parametrize("what", ["weights", "moments", "again", "plain", "loaded", "narrow", "refused"])
def test_pieces_are_saved_and_read_by_all_processes(found, what):
    assert found["each_saves_and_reads_its_own_pieces"][what]


def test_a_run_starts_from_a_checkpoint_of_which_each_process_reads_its_part(found):
    figures = found["a_run_starts_from_a_checkpoint"]
    assert_started(figures)
    assert figures["read"] < 0.7  # a quarter of it for its device, a quarter for the digest


def test_no_process_owns_or_reads_more_than_its_own_pieces(found):
    told = found["each_saves_and_reads_its_own_pieces"]
    assert sum(told["owned"]) == told["all"]  # each number is owned once
    assert max(told["owned"]) < told["all"] / 2
    assert max(told["read"]) < told["all"] / 2  # on another mesh, which cuts in other places
    assert min(told["read"]) > told["all"] / 5


@pytest.mark.skipif(not RESET.exists(), reason="the peak of a process is what Linux says")
def test_no_process_needs_more_memory_than_its_pieces_and_a_little():
    for figures in run_processes(2, "mesh_uses", ["memory_of_each"])["memory_of_each"]:
        assert figures["same"]
        assert figures["share"] == pytest.approx(0.5, abs=0.01)
        assert max(figures[name] for name in ("build", "save", "load")) <= 1.3, figures
        assert (figures["drawn"], figures["largest"]) == (pytest.approx(1, abs=0.01), 1)
        assert figures["control"] > 2  # the negative control: whole weights would be seen


def test_a_number_of_one_process_that_is_not_finite_stops_all(found):
    told = found["a_number_of_one_process_stops_all"]
    assert told == [told[0]] * 4
    is_finite, bad, unchanged = told[0]
    assert not is_finite
    assert bad > 0
    assert unchanged


def test_only_the_first_process_is_first(found):
    assert found["only_the_first_is_first"] == [True, False, False, False]
    assert torch_impl.is_first()


def test_copies_of_a_weight_stay_alike_however_each_process_rounds(found):
    assert found["copies_stay_alike"] == [True, False]


def test_each_process_reads_its_own_rows_and_no_others(found):
    assert found["each_reads_its_own_rows"] == {"same": True, "read": [[0, 2], [0, 2], [1, 3], [1, 3]]}


def test_norm_scales_and_rotary_tables_stay_wide(found):
    ours, by_itself = found["what_stays_wide"]
    narrow, wide = ["torch.bfloat16"], ["torch.float32"]
    assert ours == {"norms": wide, "rotation": wide, "matrices": narrow, "x": narrow}
    assert by_itself["rotation"] == narrow


def test_what_users_do_wrong_is_said(found):
    names = ("call", "size", "rows", "ids", "read")
    call, size, rows, ids, read = (found["errors"][name] for name in names)
    assert read == rows
    assert call.startswith(
        "BackendError: a model must have whole weights to be called; got one whose weights"
    )
    assert size.startswith("BackendError: mesh must have as many devices as there are processes; got")
    assert "of 3 for 4. Start 3: torchrun --nproc-per-node 3" in size
    assert rows.startswith("ConfigError: batch must be a multiple of accumulate · pod · data = 2")
    assert ids.startswith("TokenError: tokens must lie in")


@pytest.mark.parametrize("how", ["ends", pytest.param("hangs", marks=pytest.mark.whole)])
def test_a_process_that_fails_ends_the_others_with_an_error_that_says_so(how):
    codes, (first, second) = start_processes(2, "mesh_uses", ["fails", how], timeout=120)
    assert codes == [1, 1]
    assert "MemoryError: out of memory" in second
    last = first.strip().splitlines()[-1]
    assert last.startswith("palm.errors.BackendError: the processes of a mesh must all go on; got no answer")
    assert ("Timed out waiting" in last) == (how == "hangs")


def test_a_mesh_of_one_needs_no_processes():
    assert torch_impl.device_mesh(Mesh()) == torch.get_default_device()
    assert not torch.distributed.is_initialized()
    model = torch_impl.PaLM(small())
    assert torch_impl.mesh_of_model(model) == Mesh()
    with pytest.raises(BackendError, match=r"got mesh=data=2 of 2 for 1\. Start 2: torchrun"):
        torch_impl.device_mesh(mesh_of("data=2"))


SCRIPT = """
import sys
import numpy as np
import palm
from palm import torch_impl
from palm.spec.mesh import mesh_of

fails = "fails" in sys.argv
mesh = torch_impl.device_mesh(mesh_of("data=2"))
config = palm.preset("tiny").resolve("torch")
model = palm.build(config, backend="torch", device=mesh)
recipe = palm.recipe("bytes", batch=2, length=8, steps=9)
trainer = torch_impl.Trainer(model, recipe)
for step in (1, 2):
    if fails and step == 2 and not torch_impl.is_first():
        raise MemoryError("out of memory")
    outcome = trainer.step(np.zeros((2, 9), np.int64), recipe.rates(step))
if torch_impl.is_first():
    print(f"loss {outcome.loss}")
"""


@pytest.mark.whole
@pytest.mark.parametrize("how", ["learns", "fails"])
def test_torchrun_starts_and_ends_the_processes(tmp_path, how):
    file = tmp_path / "learn.py"
    file.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(file), how]
    environment = {**os.environ, **ON_CPUS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.count("loss ") == (how == "learns")
    assert (done.returncode == 0) == (how == "learns")
    assert ("MemoryError: out of memory" in done.stderr) == (how == "fails")
