"""The parameter table: names, shapes, axes and initialisers."""

import dataclasses

import numpy as np
import pytest
from cases import SIZES, assert_explains, draw_weights, small

from palm import ConfigError, PaLMConfig, WeightsError
from palm.spec.parameters import check_array, check_names, numpy_dtype, parameters

V, D, DEPTH, INNER, E, F = 13, 6, 2, 3 * 4, 4, 3 * 6
EMBEDDING = ("embedding", (V, D), ("vocab", "embed"), 1.0)
NORM = ("norm", (D,), ("embed",), None)
UNEMBEDDING = ("unembedding", (D, V), ("embed", "vocab"), 1.0)


def block_rows(i: int, *key_value: str) -> list[tuple]:
    return [
        (f"blocks.{i}.norm", (D,), ("embed",), None),
        (f"blocks.{i}.attention.query", (D, INNER), ("embed", "heads"), D**-0.5),
        *((f"blocks.{i}.attention.{name}", (D, E), ("embed", "kv"), D**-0.5) for name in key_value),
        (f"blocks.{i}.attention.out", (INNER, D), ("heads", "embed"), INNER**-0.5),
        (f"blocks.{i}.feedforward.up", (D, F), ("embed", "ff"), D**-0.5),
        (f"blocks.{i}.feedforward.gate", (D, F), ("embed", "ff"), D**-0.5),
        (f"blocks.{i}.feedforward.down", (F, D), ("ff", "embed"), F**-0.5),
    ]


@pytest.mark.parametrize(("share_kv", "key_value"), [(True, ["key_value"]), (False, ["key", "value"])])
@pytest.mark.parametrize(("tied", "output"), [(True, []), (False, [UNEMBEDDING])])
def test_the_whole_table_in_dataflow_order(tied, output, share_kv, key_value):
    table = parameters(small(tie_embeddings=tied, share_kv=share_kv))
    blocks = [row for i in range(DEPTH) for row in block_rows(i, *key_value)]
    expected = [EMBEDDING, *blocks, NORM, *output]
    assert [(p.name, p.shape, p.axes, p.std) for p in table.values()] == expected
    assert list(table) == [row[0] for row in expected]


def test_reference_embeddings_start_fifty_times_smaller_and_nothing_else_changes():
    paper, reference = (parameters(small(init=init, tie_embeddings=False)) for init in ("paper", "reference"))
    assert {name for name in paper if paper[name] != reference[name]} == {"embedding", "unembedding"}
    assert reference["embedding"].std == reference["unembedding"].std == 0.02


def test_axes_name_every_dimension_by_its_size():
    sizes = {"vocab": V, "embed": D, "heads": INNER, "kv": E, "ff": F}
    for row in parameters(small(tie_embeddings=False, share_kv=False)).values():
        assert row.shape == tuple(sizes[axis] for axis in row.axes)


def test_a_kind_is_the_name_without_the_block():
    kinds = [row.kind for row in parameters(small()).values()]
    assert kinds[1:3] == ["blocks.norm", "blocks.attention.query"]
    assert len(set(kinds)) == 2 + len(block_rows(0, "key_value"))


def test_sizes_add_up():
    table = parameters(small(share_kv=False, tie_embeddings=False))
    per_block = D + 2 * D * INNER + 2 * D * E + 3 * D * F
    assert sum(row.size for row in table.values()) == 2 * V * D + D + DEPTH * per_block


def test_the_table_cannot_be_changed():
    table = parameters(small())
    with pytest.raises(TypeError):
        table["embedding"] = None  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        table["embedding"].std = 2.0


@pytest.mark.parametrize("field", ["positions", "norm", "share_kv", "norm_eps", "norm_eps_mode"])
def test_a_config_with_an_open_choice_has_no_table(field):
    with pytest.raises(ConfigError) as raised:
        parameters(dataclasses.replace(small(), **{field: None}))
    assert_explains(raised, "config must be resolved", "positions=", 'config.resolve("torch")')


def test_an_open_config_is_told_what_is_open():
    with pytest.raises(ConfigError, match="positions=None, norm=None, share_kv=None"):
        parameters(PaLMConfig(**SIZES))


@pytest.mark.parametrize("dtype", ["float16", "int8", "Float32", None, np.float32, ["float32"]])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ConfigError) as raised:
        numpy_dtype(dtype)
    assert_explains(raised, "dtype must be one of float64, float32, bfloat16", f"dtype={dtype!r}", "Choose")


def test_missing_names_are_all_named_before_unknown_ones():
    names = set(parameters(small())) - {"norm", "blocks.1.feedforward.up"} | {"extra"}
    with pytest.raises(WeightsError) as raised:
        check_names(small(), names)
    missing = "miss blocks.1.feedforward.up, norm."
    assert_explains(raised, "weights must have exactly", missing, "They have unknown extra.", "Check that")


def test_the_names_of_a_state_dict_are_known_for_what_they_are():
    with pytest.raises(WeightsError) as raised:
        check_names(small(), [f"{name}.weight" for name in parameters(small())])
    assert_explains(raised, "miss embedding, ", "have unknown blocks.0", "state_dict", "palm.to_numpy(model)")


def test_unknown_names_are_named_in_order():
    with pytest.raises(WeightsError, match=r"have unknown a, b\."):
        check_names(small(), [*parameters(small()), "b", "a"])


def test_a_long_list_of_names_is_cut_short():
    config = small()
    with pytest.raises(WeightsError, match=rf" and {len(parameters(config)) - 8} more\."):
        check_names(config, [])


def test_right_names_and_arrays_pass():
    config = small()
    weights = draw_weights(config)
    check_names(config, weights)
    for name, row in parameters(config).items():
        check_array(row, weights[name])


def test_a_transposed_matrix_is_known_for_what_it_is():
    row = parameters(small())["blocks.0.attention.query"]
    with pytest.raises(WeightsError, match=r"If it is transposed, pass its \.T: palm .* as \(in, out\)\."):
        check_array(row, np.ones(row.shape[::-1]))
    with pytest.raises(WeightsError, match=r"belong together\.$"):
        check_array(row, np.ones((2, 3)))


def change(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (
            lambda a: a.T,
            ["must have shape (13, 6)", "shape=(6, 13)", ".T", "(num_tokens, dim)."],
        ),
        (lambda a: a[None], ["must have shape (13, 6)", "shape=(1, 13, 6)", "Check that"]),
        (lambda a: a.astype(np.float16), ["must be one of float64", "dtype=float16", "Cast it"]),
        (lambda a: a.astype(np.int32), ["must be one of float64", "dtype=int32", "Cast it"]),
        (lambda a: a.astype(">f8"), ["must be one of float64", "dtype=>f8", "Cast it"]),
        (lambda a: a.astype(complex), ["must be one of float64", "dtype=complex128", "Cast it"]),
        (lambda a: change(a, (3, 2), np.nan), ["must be finite", "nan at (3, 2)", "1 such", "Go back"]),
        (lambda a: change(a, (slice(2), 5), -np.inf), ["must be finite", "-inf at (0, 5)", "2 such"]),
        (lambda a: a.astype(numpy_dtype("bfloat16")) * np.inf, ["must be finite", "(0, 0)", "78 such"]),
    ],
)
def test_an_array_that_does_not_fit_its_row_is_refused(spoil, parts):
    config = small()
    with pytest.raises(WeightsError) as raised:
        check_array(parameters(config)["embedding"], spoil(draw_weights(config)["embedding"]), source="here")
    assert_explains(raised, "here: embedding", *parts)
