"""The processes of a training must be given the same."""

import json
import tracemalloc

import numpy as np
import pytest
from cases import draw_weights, small
from teams import cut, together

import palm
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.team import alone, save_pieces
from palm.spec.boxes import Piece
from palm.training.alike import check_alike
from palm.training.start import Start, digest_of, digest_of_boxes

CONFIG = small()


class Processes:
    """This process among several: what the first one shares, and whether another one disagrees."""

    def __init__(self, first, *, others_differ=False, several=True):
        self.first, self.others_differ, self.is_several = first, others_differ, several

    def several(self):
        return self.is_several

    def share(self, content):
        return json.dumps(self.first).encode()

    def agreed(self, flag):
        return flag or self.others_differ


RECIPE = {"learning_rate": 0.1, "steps": 4}
FIRST = {"learning_rate": "0.1", "steps": "4", "data": "abc"}


def test_processes_that_were_given_the_same_go_on():
    check_alike(Processes(FIRST), recipe=RECIPE, data="abc")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"recipe": {**RECIPE, "steps": 3}, "data": "abc"}, "steps=3, and 4 in the first one"),
        ({"recipe": RECIPE, "data": "abd"}, "data=abd, and abc in the first one"),
        ({"recipe": RECIPE}, "data=None, and abc in the first one"),
    ],
)
def test_what_differs_is_named_in_the_process_that_has_it(given, told):
    with pytest.raises(palm.ConfigError, match=f"must be given the same; got {told}"):
        check_alike(Processes(FIRST), **given)


def test_the_others_stop_too_and_say_so():
    with pytest.raises(palm.ConfigError, match="another one was given something else"):
        check_alike(Processes(FIRST, others_differ=True), recipe=RECIPE, data="abc")


def test_a_process_alone_asks_nobody():
    check_alike(Processes({}, several=False), recipe=RECIPE)


def weights(**changed):
    arrays = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float32)}
    return arrays | changed


def test_weights_that_are_the_same_have_one_digest_however_they_lie():
    turned = np.asfortranarray(weights()["a"])
    spread = np.repeat(weights()["b"], 2)[::2]
    assert digest_of(weights()) == digest_of({"b": spread, "a": turned}) == digest_of(weights())


@pytest.mark.parametrize(
    "changed",
    [
        {"b": np.nextafter(np.ones(5, np.float32), 2)},
        {"b": np.ones(5)},
        {"b": np.ones((5, 1), np.float32)},
        {"b": np.array([1, 1, 1, 1, -1], np.float32)},
        {"c": np.ones(5, np.float32)},
        {"a": np.arange(12, dtype=np.float32).reshape(4, 3).T.copy()},
    ],
    ids=["one unit", "dtype", "shape", "the last number", "name", "order"],
)
def test_other_weights_have_another_digest(changed):
    assert digest_of(weights()) != digest_of(weights(**changed))


def test_every_number_of_large_weights_counts():
    large = np.zeros((3000, 1000), np.float32)
    whole = digest_of({"a": large})
    for at in (0, 1_500_001, large.size - 1):
        large.flat[at] = 1
        assert digest_of({"a": large}) != whole
        large.flat[at] = 0
    assert digest_of({"a": large}) == whole


class Some:
    """One of several processes; `merged` gives what all of them have from what it has."""

    def __init__(self, number, count, merged=lambda own: own):
        self.numbered, self.greatest = lambda: (number, count), merged


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("owners", [0, 1, 3])
def test_the_digest_of_a_checkpoint_is_that_of_its_arrays(tmp_path, owners, count):
    """However many processes form it, and into whatever pieces it is cut."""
    path, arrays = tmp_path / "model", draw_weights(CONFIG)
    if owners:
        dealt = cut(arrays, owners)
        together(owners, lambda team: save_pieces(CONFIG, dealt[team.process], path, team))
    else:
        save_arrays(CONFIG, arrays, path)
    boxes, found = Boxes(path), []
    for number in range(count):
        digest_of_boxes(boxes, Some(number, count, lambda own: found.append(own) or own))
    shares = np.any(found, axis=2)
    assert (shares.sum(0) == 1).all()  # each tensor is read by one of them
    assert shares.sum(1).max() <= -(-len(arrays) // count)
    processes = Some(0, count, lambda own: np.max(found, axis=0))
    assert Start(boxes=boxes).digest(processes) == digest_of(arrays)
    assert json.loads((path / "manifest.json").read_text())["seal"] in Start(boxes=boxes).kind
    arrays["norm"] = np.nextafter(arrays["norm"], 2)
    assert Start(boxes=boxes).digest(processes) != digest_of(arrays)
    assert Start(boxes=Boxes(save_arrays(CONFIG, arrays, tmp_path / "other"))).kind != Start(boxes=boxes).kind


def test_pieces_are_read_once_for_the_digest(tmp_path, monkeypatch):
    path, arrays = tmp_path / "model", draw_weights(CONFIG)
    embedding = arrays.pop("embedding")
    pieces = [Piece(name, (0,) * array.ndim, array) for name, array in arrays.items()]
    half = embedding.shape[1] // 2
    for row in range(len(embedding)):
        pieces += [Piece("embedding", (row, at), embedding[row : row + 1, at:][:, :half]) for at in (0, half)]
    save_pieces(CONFIG, pieces, path, alone())
    boxes, opened, at = Boxes(path), [], Boxes._at
    monkeypatch.setattr(Boxes, "_at", lambda *given: opened.append(given[2].box) or at(*given))
    assert np.array_equal(np.concatenate([part.copy() for part in boxes.rows("embedding")]), embedding)
    assert len({*opened}) == len(opened) == 2 * len(embedding)


@pytest.mark.parametrize("owners", [0, 1])
def test_a_digest_needs_a_few_rows_in_memory(tmp_path, owners):
    config = small(num_tokens=60_000, dim=64)
    path, arrays = tmp_path / "model", draw_weights(config)
    pieces = [Piece(name, (0,) * array.ndim, array) for name, array in arrays.items()]
    save_pieces(config, pieces, path, alone()) if owners else save_arrays(config, arrays, path)
    boxes = Boxes(path)
    tracemalloc.start()
    try:
        assert Start(boxes=boxes).digest(Some(0, 1)) == digest_of(arrays)
        assert tracemalloc.get_traced_memory()[1] < arrays["embedding"].nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_rows_of_a_damaged_piece_have_no_digest(tmp_path, damage):
    path = save_arrays(CONFIG, draw_weights(CONFIG), tmp_path / "model")
    file = path / "weights-00001-of-00001.safetensors"
    boxes, content = Boxes(path), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flip" else content[:-1])
    with pytest.raises(palm.CheckpointError, match=file.name):
        digest_of_boxes(boxes, Some(0, 1))


def test_pieces_that_form_no_grid_are_read_too(tmp_path):
    """As no mesh cuts them: on the left in two halves, on the right whole."""
    path, arrays = tmp_path / "model", draw_weights(CONFIG)
    embedding = arrays.pop("embedding")
    pieces = [Piece(name, (0,) * array.ndim, array) for name, array in arrays.items()]
    pieces += [Piece("embedding", (0, 0), embedding[:5, :2]), Piece("embedding", (5, 0), embedding[5:, :2])]
    save_pieces(CONFIG, [*pieces, Piece("embedding", (0, 2), embedding[:, 2:])], path, alone())
    assert np.array_equal(np.concatenate([*Boxes(path).rows("embedding")]), embedding)


def test_what_is_given_is_said_without_a_digest():
    assert [Start().kind, Start(weights()).kind] == ["none", "arrays"]
    assert Start().digest(Some(0, 1)) is None
    assert Start(weights()).digest(Some(0, 2)) == digest_of(weights())
