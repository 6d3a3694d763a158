"""A run on documents is the run on their ids in one array."""

import numpy as np
import pytest
from cases import assert_same_bits, small

import palm

ITEMS = [np.random.default_rng(seed).integers(1, 13, 30 + seed) for seed in range(20)]
ROWS = [{"input_ids": [*item.tolist(), 0]} for item in ITEMS]
RECIPE = palm.Recipe(steps=2, batch=4, length=8, warmup=1, validation=0.2, pack=0)


def test_documents_and_their_ids_train_the_same(tmp_path):
    ids = np.concatenate([row["input_ids"] for row in ROWS])
    run = tmp_path / "run"
    weights, of_ids, other = (
        palm.to_numpy(palm.train(small(), RECIPE, data, backend="torch", **kept).model)
        for data, kept in ((ROWS, {"out": run}), (ids, {}), (ROWS[::-1], {}))
    )
    assert_same_bits(weights, of_ids)
    assert not np.array_equal(weights["embedding"], other["embedding"])
    with pytest.raises(palm.RunError, match="differs"):
        palm.resume(run, steps=3, data=ROWS[::-1])
    with pytest.raises(palm.RunError, match="data must be given because"):
        palm.resume(run, steps=3)
    assert palm.resume(run, steps=3, data=ROWS).step == 3


def test_an_id_beyond_the_model_is_named_with_its_document(tmp_path):
    with pytest.raises(palm.DataError, match="got id 13 at 1 of item 20 of documents"):
        palm.train(small(), RECIPE, [*ROWS, {"input_ids": [1, 13]}], backend="torch", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
