"""What cannot fit into memory is refused with the bytes that it needs; and copies are what NumPy copies."""

import numpy as np
import pytest
from cases import assert_explains, at_most

import palm
from palm import memory
from palm.cli.main import main
from palm.data.windows import sample_windows
from palm.errors import ConfigError
from palm.spec.sizes import check_cache, check_comparison, check_model, check_training, describe

TINY = palm.preset("tiny").resolve("torch")
HUGE = 10**12


def used(check, monkeypatch) -> int:
    """The bytes that a check asks for: it passes with so many, and not with one less."""
    asked = []
    monkeypatch.setattr(memory, "check_fits", lambda what, needed, fix: asked.append(needed))
    monkeypatch.setattr("palm.spec.sizes.check_fits", memory.check_fits)
    check()
    return max(asked)


def test_what_fits_exactly_is_taken_and_one_byte_less_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * 2**30)
    memory.check_fits("three", 3 * 2**30, "Take less.")
    with pytest.raises(ConfigError) as raised:
        memory.check_fits("four", 4 * 2**30, "Take less.")
    assert_explains(raised, "memory must hold four", "3 GiB", "4 GiB", "Take less.")


def test_nothing_is_refused_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    memory.check_fits("all there is", 2**200, "")


@pytest.mark.parametrize(
    ("check", "needed"),
    [
        (lambda: check_model(TINY, "bfloat16"), 2 * describe(TINY).total),
        (lambda: check_model(TINY, "float64"), 8 * describe(TINY).total),
        (
            lambda: check_training(TINY, "float32", batch=8, micro=4, length=16),
            16 * describe(TINY).total + 8 * 8 * 17 + 2 * 4 * 16 * TINY.dim * TINY.depth,
        ),
        (lambda: check_cache(TINY, batch=3, length=5), 15 * describe(TINY).cache_bytes),
    ],
)
def test_what_is_asked_for_is_what_it_takes_at_least(check, needed, monkeypatch):
    assert used(check, monkeypatch) == needed


def test_a_comparison_needs_its_weights_and_its_tokens(monkeypatch):
    one, more = (
        used(lambda rows=rows: check_comparison(TINY, rows=rows, sides=2), monkeypatch) for rows in (1, 2)
    )
    assert one > 24 * describe(TINY).total
    assert more - one > 12 * TINY.num_tokens


def test_the_sizes_of_a_deep_model_are_those_of_its_parts():
    deep = describe(palm.preset("tiny", depth=5).resolve("jax"))
    table = palm.spec.parameters.parameters(palm.preset("tiny", depth=5).resolve("jax"))
    assert deep.total == sum(p.size for p in table.values())
    assert set(deep.parameters) == {p.kind for p in table.values()}


@pytest.mark.parametrize("name", ["num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult"])
@pytest.mark.parametrize("value", [2**63, 10**400, 10**5000], ids=lambda value: str(value.bit_length()))
def test_a_size_that_no_array_has_is_a_config_error(name, value):
    with pytest.raises(ConfigError) as raised:
        palm.preset("tiny", **{name: value})
    assert_explains(raised, name, "below 2**63", f"{value.bit_length()} bits")


def test_a_seed_may_have_any_number_of_bits():
    assert palm.recipe("adamw", seed=2**128).seed == 2**128


def test_windows_are_refused_before_they_are_drawn():
    with pytest.raises(ConfigError, match="memory must hold 1,000,000,000,000 × 4 tokens"):
        sample_windows(b"a text", TINY.num_tokens, batch=HUGE, length=4, seed=0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "--dim", "1000000", "--depth", "1"],
        ["compare", "--depth", "1000000000"],
        ["compare", "--batch", "100000000"],
        ["compare", "--batch", str(HUGE)],
        ["compare", "--repeat", str(HUGE)],
        ["record", "torch", "--dim", "2000000", "--out", "bundle"],
    ],
    ids=" ".join,
)
def test_commands_refuse_what_cannot_fit_at_once(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("palm.parity.run.launch.check_installed", lambda backend: None)
    monkeypatch.setattr("palm.parity.run.launch.Child", None)  # none is started
    with at_most(5):
        assert main(arguments) == 2
        told = capsys.readouterr()
        assert told.err.startswith("palm: memory must hold ")
        assert len(told.err.splitlines()) == 1


def test_info_describes_a_model_of_any_depth(capsys):
    assert main(["info", "tiny"]) == 0
    assert describe(palm.preset("tiny", depth=2**40).resolve("torch")).total > 2**40
    assert main(["info", "tiny", "--length", str(10**400)]) == 2
    assert "length must be a whole number below 2**63" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("80GiB", 80 * 2**30),
        ("80GB", 80 * 10**9),
        ("30.75 GiB", 33017561088),
        ("7B", 7),
        (12, 12),
        ("1TiB", 2**40),
    ],
)
def test_a_size_is_read(given, size):
    assert memory.bytes_of(given) == size


@pytest.mark.parametrize(
    "given", ["80", "GiB", "-1GiB", "0GiB", "8iB", "8 gib", "", 0, -3, True, None, 8.5, "1e3GiB"]
)
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ConfigError) as raised:
        memory.bytes_of(given)
    assert_explains(raised, "memory must be bytes or a size in B, KB, KiB", repr(given), "Write 80GiB")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (16, 16), (67, 41), (7,), (3, 4, 5)])
def test_a_room_takes_the_elements_however_it_lies(shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for given in (array, np.asfortranarray(array), np.repeat(array, 2, axis=-1)[..., ::2]):
        for room in (np.zeros(shape, dtype), np.zeros(shape[::-1], dtype).T, np.zeros((9, *shape), dtype)[4]):
            memory.put(room, given)
            assert np.array_equal(room, array)
