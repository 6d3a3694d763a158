"""Documents of ids from any map-style dataset: the corpus of their ids, read document by document."""

from collections import UserDict

import numpy as np
import pytest
from cases import assert_explains

from palm import DataError
from palm.data.corpus import open_corpus
from palm.data.windows import batch_of, check_vocabulary, validation_windows

LENGTHS = (3, 0, 40, 1, 1, 0, 57, 0)
IDS = np.random.default_rng(0).integers(0, 50, sum(LENGTHS))
ITEMS = np.split(IDS, np.cumsum(LENGTHS)[:-1])


class Dataset:
    """Says which items were asked for."""

    def __init__(self, items):
        self.items, self.asked = list(items), []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if index >= len(self.items):
            raise IndexError(index)
        self.asked.append(index)
        return self.items[index]


def rows(items=ITEMS):
    """As a dataset of Hugging Face gives them: lists, beside other columns."""
    return Dataset([UserDict({"text": "…", "input_ids": item.tolist()}) for item in items])


KINDS = {
    "arrays": lambda: ITEMS,
    "lists": lambda: tuple(item.tolist() for item in ITEMS),
    "narrow": lambda: [item.astype(np.uint8) for item in ITEMS],
    "a class": lambda: Dataset(ITEMS),
    "rows": rows,
}


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_the_corpus_of_their_ids(kind):
    found, whole = open_corpus(KINDS[kind]()), open_corpus(IDS)
    assert len(found) == len(IDS)
    assert found.digest == whole.digest
    assert found.largest_possible == IDS.max()
    for start, stop in [(0, len(IDS)), (2, 4), (3, 43), (43, 44), (44, 45), (50, 102), (7, 7), (102, 102)]:
        assert found.read(start, stop).tolist() == IDS[start:stop].tolist()
    assert found.slice(10, 60).digest == whole.slice(10, 60).digest
    wanted = {"seed": 1, "first": 3, "rows": 9, "length": 11}
    assert np.array_equal(batch_of(found, **wanted)[:], batch_of(whole, **wanted)[:])
    spread = {"length": 11, "limit": 4}
    assert np.array_equal(validation_windows(found, **spread), validation_windows(whole, **spread))
    check_vocabulary(found, int(IDS.max()) + 1)


def test_only_the_documents_of_what_is_read_are_asked_for():
    dataset = rows()
    found = open_corpus(dataset)
    assert dataset.asked == list(range(len(LENGTHS)))
    dataset.asked.clear()
    found.read(5, 44)
    assert dataset.asked == [2, 3]


def test_documents_in_another_order_or_with_another_id_have_another_digest():
    digest = open_corpus(ITEMS).digest
    assert open_corpus(ITEMS[::-1]).digest != digest
    assert open_corpus([*ITEMS[:-1], np.array([1])]).digest != digest


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (np.array([1.0, 2.0]), "item 1 of documents, float64[2]"),
        (np.array([[1, 2]]), "item 1 of documents, int64[1, 2]"),
        (np.array([True]), "bool[1]"),
        (7, "int64[]"),
        ("a text", "item 1 of documents, <U6[]"),
        ([[1], [2, 3]], "raised ValueError"),
        ({"text": "a text"}, "item 1 of documents. It raised KeyError"),
        ({"input_ids": "no"}, "item 1 of documents, <U2[]"),
        ([1, -2], "got data=-2 at 1 of item 1 of documents"),
        (np.array([2**63], np.uint64), "at 0 of item 1 of documents"),
    ],
)
def test_an_item_that_is_no_row_of_ids_is_named(item, told):
    with pytest.raises(DataError) as raised:
        open_corpus([np.arange(3), item])
    assert_explains(raised, "data must be ", told)


def test_an_id_beyond_the_vocabulary_is_named_with_its_document():
    found = open_corpus([np.arange(3), np.array([], int), np.array([1, 60, 2])])
    with pytest.raises(DataError, match="got id 60 at 1 of item 2 of documents"):
        check_vocabulary(found, 60)
    with pytest.raises(DataError, match="got id 60 at 1 of item 2 of documents"):
        check_vocabulary(found.slice(2, 6), 60)
    check_vocabulary(found, 61)


@pytest.mark.parametrize("items", [[], [[]], [np.array([], int)] * 3])
def test_no_ids_are_refused(items):
    with pytest.raises(DataError, match="data must be documents of at least one id"):
        open_corpus(items)


@pytest.mark.parametrize("other", [ITEMS[6][1:], ITEMS[6] ^ 1, ITEMS[6][::-1], None])
def test_a_document_that_changes_is_noticed_when_it_is_read(other):
    dataset = Dataset(ITEMS)
    found = open_corpus(dataset)
    if other is None:
        del dataset.items[6:]
    else:
        dataset.items[6] = other
    assert found.read(0, 45).tolist() == IDS[:45].tolist()  # the control: the others may be read
    with pytest.raises(DataError, match="item 6 of documents"):
        found.read(40, 50)
