"""Training's numbers below 1e-38 are 0 in every thread of it, and in no other."""

import os

import pytest
from cases import python

CODE = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "2"
import numpy as np, torch

def denormals(size=1 << 22):
    return int((torch.full((size,), 1e-39) * 1 != 0).sum())

if sys.argv[1] == "warm":
    assert denormals() == 1 << 22  # torch's other threads are there now, and keep such numbers
import palm
from palm.torch_impl import Trainer

model = palm.build(palm.preset("tiny", num_tokens=2048, tie_embeddings=False), backend="torch")
recipe = palm.recipe("adamw", batch=1, length=4, beta1=0.5)

def moments(step):
    trainer = Trainer(model, recipe)
    tiny = np.finfo(np.float32).tiny
    trainer.set_moments({name: np.full_like(a, 1.5 * tiny) for name, a in trainer.moments().items()})
    getattr(trainer, step)(np.zeros((1, 5), np.int64), recipe.rates(1))
    halved = trainer.moments()["first.embedding"][1:]  # the rows that these tokens do not touch directly
    return int(((halved != 0) & (np.abs(halved) < tiny)).sum())

# The control makes the same step in this thread.
print(moments("step"), moments("_step") > 0, denormals())
"""


@pytest.mark.sampled(1)
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has no second thread")
@pytest.mark.parametrize("start", ["warm", "cold"])
def test_a_run_flushes_denormals_in_all_its_threads_and_leaves_the_others_alone(start):
    done = python(CODE, start)
    assert done.stderr == ""
    assert done.stdout.split() == ["0", "True", str(1 << 22)]
