"""`palm plan` says whether a training fits, in words, in JSON and by its exit status."""

import json
import re

import pytest

import palm
from palm.cli.main import main
from palm.memory import in_units


def planned(capsys, *arguments) -> tuple[int, str]:
    return main(["plan", *arguments]), capsys.readouterr().out


def test_what_fits_is_shown_with_every_part(capsys):
    status, out = planned(capsys, "palm-8b", "--devices", "8", "--memory", "80GiB", "--batch", "64")
    found = palm.plan("palm-8b", devices=8, memory="80GiB", batch=64)
    first, second, *rows = out.splitlines()
    assert status == 0
    told = f"{in_units(found.bytes_per_device)} a device; fits 64 GiB, 80% of its memory"
    assert first == f"palm-8b on 8 devices, data=8: {told}"
    assert second == "64 × 2,048 tokens, bfloat16, remat=True, accumulate=1"
    shown = dict(re.split(" {2,}", row.strip()) for row in rows if row.strip())
    of = found.footprint
    assert list(shown.values()) == [
        *map(in_units, of.to_dict().values()),
        in_units(of.total),
        in_units(found.cache_bytes),
        in_units(found.traffic.gathered),
        in_units(found.traffic.reduced),
    ]


def test_what_does_not_fit_says_why_and_what_would_and_has_a_status(capsys):
    status, out = planned(
        capsys, "palm-8b", "--devices", "8", "--memory", "40GiB", "--batch", "64", "--remat", "False"
    )
    found = palm.plan("palm-8b", devices=8, memory="40GiB", batch=64, remat=False)
    assert status == 1
    assert "does not fit 32 GiB" in out
    for line in (*found.reasons, *found.remedies):
        assert f"  {line}\n" in out


def test_without_memory_nothing_is_said_of_it(capsys):
    status, out = planned(capsys, "tiny")
    assert status == 0
    assert "fit" not in out


def test_flags_change_the_model_the_recipe_and_the_mesh(capsys):
    status, out = planned(
        capsys,
        *(
            "small",
            "--depth",
            "3",
            "--architecture",
            "torch",
            "--recipe",
            "adamw",
            "--mesh",
            "data=2,model=2",
        ),
        *("--batch", "8", "--length", "32", "--accumulate", "2", "--precision", "bfloat16"),
        *("--remat", "feedforward", "--json"),
    )
    told = palm.plan(
        palm.preset("small", depth=3).resolve("torch"),
        **{"mesh": "data=2,model=2", "recipe": "adamw", "batch": 8, "length": 32, "accumulate": 2},
        precision="bfloat16",
        remat="feedforward",
    )
    assert status == 0
    assert json.loads(out) == told.to_dict()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["palm-9b"], "preset must be one of tiny, small"),
        (["tiny", "--memory", "much"], "memory must be bytes or a size in"),
        (["tiny", "--mesh", "data=3"], "batch must be a multiple of"),
        (["tiny", "--heads", "0"], "heads must be a whole number"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert told.err.count("\n") == 1


def test_lines_fit_a_terminal(capsys):
    for arguments in (["palm-540b", "--devices", "2048", "--memory", "30GiB", "--batch", "1024"], ["tiny"]):
        _, out = planned(capsys, *arguments)
        assert max(map(len, out.splitlines())) <= 120
