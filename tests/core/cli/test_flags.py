"""Every setting has a flag, and every flag says what it does."""

import dataclasses
import io
import itertools
import re
from contextlib import redirect_stdout
from typing import Annotated, get_args, get_origin

import pytest
import tyro

from palm import Cadence, PaLMConfig, Recipe
from palm.cli import flags
from palm.cli.flags import CadenceFlags, ModelFlags, RecipeFlags, _flags
from palm.cli.main import STYLE, main

FLAGS = {PaLMConfig: ModelFlags, Recipe: RecipeFlags, Cadence: CadenceFlags}
FIELDS = [(cls, field.name) for cls in FLAGS for field in dataclasses.fields(cls)]


def made(cls: type) -> type:
    """The dataclass of flags itself."""
    return FLAGS[cls]


def help_of(cls: type, name: str) -> str:
    """What tyro is told of a flag."""
    field = next(field for field in dataclasses.fields(made(cls)) if field.name == name)
    assert get_origin(field.type) is Annotated
    return get_args(field.type)[1].help


@pytest.fixture(scope="module")
def shown():
    """What `palm train --help` prints of each flag."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stop:
            main(["train", "--help"])
    assert stop.value.code == 0
    lines = [line.strip("│| ") for line in printed.getvalue().splitlines()]
    starts = [number for number, line in enumerate(lines) if re.match("--[a-z]", line)]
    helps = {}
    for start, end in itertools.pairwise([*starts, len(lines)]):
        name = re.match(r"--([\w-]+)", lines[start])[1]
        helps[name] = " ".join(" ".join(lines[start:end]).split())
    return helps


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_has_a_flag_with_a_help_text(cls, name, shown):
    told = help_of(cls, name)
    assert told.strip()
    assert not re.search(r"`|\n|  ", told)
    flag = name.replace("_", "-")
    assert told in shown[flag]
    assert "(default: " in shown[flag]


def test_a_flag_that_is_missing_would_be_noticed(shown):
    assert "no-such-flag" not in shown
    assert len(shown) > len(FIELDS)


@pytest.mark.parametrize("cls", FLAGS)
def test_the_flags_are_exactly_the_fields(cls):
    assert [field.name for field in dataclasses.fields(made(cls))] == [
        f.name for f in dataclasses.fields(cls)
    ]
    assert dataclasses.asdict(made(cls)()) == dict.fromkeys(field.name for field in dataclasses.fields(cls))


def test_no_two_classes_have_a_field_of_one_name():
    names = [name for _, name in FIELDS]
    assert len(set(names)) == len(names)


def test_the_defaults_shown_are_those_in_force(shown):
    for field in dataclasses.fields(Cadence):
        assert f"(default: {field.default!r})" in shown[field.name.replace("_", "-")]
    assert shown["dim"].endswith("(default: the preset's)")
    assert "{None" not in " ".join(shown.values())
    assert shown["steps"].endswith("(default: the recipe's, 1000 in bytes)")


def test_a_field_without_a_description_cannot_be_a_flag():
    @dataclasses.dataclass
    class Undescribed:
        """Settings."""

        told: int = 1
        """This one."""
        untold: int = 2

    with pytest.raises(KeyError, match="untold"):
        _flags(Undescribed)


@pytest.mark.parametrize(
    ("cls", "words", "given"),
    [
        (Recipe, ["--steps", "7", "--learning-rate", "1e-3"], {"steps": 7, "learning_rate": 1e-3}),
        (Recipe, ["--ramp", "5", "32", "9", "64"], {"ramp": ((5, 32), (9, 64))}),
        (Recipe, ["--remat", "False", "--warmup", "0"], {"remat": False, "warmup": 0}),
        (Recipe, ["--remat", "True"], {"remat": True}),
        (Recipe, ["--remat", "feedforward"], {"remat": "feedforward"}),
        (PaLMConfig, ["--share-kv", "True", "--norm", "layernorm"], {"share_kv": True, "norm": "layernorm"}),
        (PaLMConfig, ["--norm-eps", "1e-6", "--dim", "24"], {"norm_eps": 1e-6, "dim": 24}),
        (Cadence, ["--keep", "1", "--sample-prompt", ""], {"keep": 1, "sample_prompt": ""}),
        (Cadence, [], {}),
    ],
)
def test_only_what_is_given_is_changed(cls, words, given):
    assert flags.given(tyro.cli(made(cls), args=words, config=STYLE)) == given


@pytest.mark.parametrize(
    "words", [["--optimizer", "sgd"], ["--steps", "1.5"], ["--ramp", "5"], ["--lr", "1"]]
)
def test_a_value_of_another_kind_is_refused_by_the_parser(words, capsys):
    with pytest.raises(SystemExit) as stop:
        tyro.cli(made(Recipe), args=words, config=STYLE)
    assert stop.value.code == 2
    capsys.readouterr()
