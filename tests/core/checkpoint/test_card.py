"""The model card of an exported folder: what it says, and that names of others are text in it."""

import json
import re
import shutil
from itertools import pairwise

import pytest
from cases import ROOT, draw_weights, small
from damage import FIELDS, OLD, save_state
from fuzz.readers import reseal
from markdown_it import MarkdownIt

import palm
from palm.checkpoint.checkpoint import save_arrays
from palm.cli.main import main
from palm.files.markup import plain, table
from palm.files.names import visible

WRITTEN = ROOT / "tests/fixtures/v0_1_0"


def card_of(path, out, **options):
    palm.export(path, out, format="transformers", **options)
    return (out / "README.md").read_text(encoding="utf-8")


def parsed(text):
    """The front matter; and of each section its tables' rows, as they are shown."""
    _, front, body = text.split("---\n", 2)
    section, found = "", {}
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    for before, token in pairwise(tokens):
        if token.type != "inline":
            continue
        shown = "".join(child.content for child in token.children)
        kinds = {child.type for child in token.children}
        if before.type == "heading_open":
            section = shown
        elif before.type in ("td_open", "th_open"):
            assert kinds <= {"text", "text_special"}, token.content  # nothing in a cell is markup
            found.setdefault(section, []).append(shown)
    return front, found


def in_pairs(cells):
    return dict(zip(cells[2::2], cells[3::2], strict=True))


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(WRITTEN / "run-jax-tokenizer", tmp_path / "run")


def test_a_runs_card_says_what_the_run_recorded(run, tmp_path):
    text = card_of(run, tmp_path / "out")
    front, found = parsed(text)
    assert front == "library_name: transformers\npipeline_tag: text-generation\ntags:\n- palm\n"
    settings = json.loads((run / "run.json").read_text())
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    config = in_pairs(found["Config"])
    assert config["depth"] == "1"
    assert config["parameters"] == "8,672"
    assert config["dtype"] == "float32"
    training = in_pairs(found["Training"])
    assert training["step"] == "4 of 4"
    assert training["tokens seen"] == str(line["tokens"])
    assert training["backend"] == settings["backend"]
    for name in ("batch", "length", "optimizer", "precision", "seed", "learning_rate"):
        assert training[name] == str(settings["recipe"][name])
    data = settings["data"]
    assert found["Data"][3:] == [
        *("data", "text.txt", data["digest"]),
        *("tokenizer", "tokenizer.json", data["tokenizer_digest"]),
    ]
    losses = in_pairs(found["Losses"])
    assert losses["training loss, step 4"] == f"{line['loss']:.4f}"
    assert losses["validation loss, step 4"] == f"{line['val_loss']:.4f}"
    assert f"palm-dual {palm.__version__}" in text
    assert "Its tokenizer is in `tokenizer.json`." in text


def test_only_what_came_before_the_checkpoint_counts(run, tmp_path):
    log = run / "metrics.jsonl"
    line = json.loads(log.read_text().splitlines()[-1])
    others = [{**line, "step": 2, "val_loss": 0.5}, line, {**line, "step": 6, "val_loss": 0.1}]
    log.write_text("".join(json.dumps(each) + "\n" for each in others) + '{"step": 3, "loss')
    losses = in_pairs(parsed(card_of(run, tmp_path / "out"))[1]["Losses"])
    assert losses["lowest validation loss so far, step 2"] == "0.5000"


NAMES = ["a|b.txt", "line\nbreak.txt", "*bold* _it_ `code`.txt", "<b>.txt", "[a](http://b).txt", "a\\|b.txt"]
NAMES += ["![i](x).txt", "~~a~~ $x$ &amp; #1.txt", "\x1b[31mred\u202e.txt", "__init__.py", "snake_case.txt"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["/home/me/secret/", "C:\\Users\\me\\secret\\", ""])
def test_a_name_is_text_and_a_path_is_not_told(name, folder, run, tmp_path):
    if "\\" in name and folder:
        name = name.replace("\\", "")  # there it would be a separator
    settings = json.loads((run / "run.json").read_text())
    settings["data"]["path"] = folder + name
    (run / "run.json").write_text(json.dumps(settings))
    reseal(run / "run.json")
    text = card_of(run, tmp_path / "out")
    shown = visible(name if "\\" not in name else name.rpartition("\\")[2])
    shown = shown.rpartition("/")[2]
    assert parsed(text)[1]["Data"][4] == shown
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_a_checkpoint_without_a_run_has_a_shorter_card(tmp_path):
    path = save_arrays(small(), draw_weights(small()), tmp_path / "model")
    text = card_of(path, tmp_path / "out", license="apache-2.0")
    front, found = parsed(text)
    assert front.endswith('license: "apache-2.0"\n')
    assert {*found} == {"Config"}
    assert "No tokenizer is recorded." in text


def test_a_checkpoint_that_left_its_run_says_what_it_holds(tmp_path):
    found = parsed(card_of(save_state(OLD, tmp_path / "model"), tmp_path / "out"))[1]
    training = in_pairs(found["Training"])
    assert training["step"] == f"300 of {FIELDS['recipe']['steps']:,}"
    assert "tokens seen" not in training
    assert in_pairs(found["Losses"]) == {"validation loss, step 300": "0.3000"}
    assert "Data" not in found


@pytest.mark.parametrize("damage", ["unsealed", "no object", "no log"])
def test_what_of_a_run_cannot_be_read_is_left_out(damage, tmp_path):
    run = shutil.copytree(WRITTEN / "run-torch", tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    if damage != "no log":
        (run / "run.json").write_text("[" if damage == "no object" else '{"data": {}}')
    found = parsed(card_of(run / "step-00000004", tmp_path / "out"))[1]
    assert ("Data" in found) == (damage == "no log")
    assert {*in_pairs(found["Losses"])} == {"validation loss, step 4"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "transformers", "license": "a\nb: c"}, "license must be a name that the hub knows"),
        (
            {"format": "safetensors", "license": "mit"},
            "license must be left out but with format=transformers",
        ),
    ],
)
def test_a_license_that_is_none_is_refused(options, told, tmp_path):
    path = save_arrays(small(), draw_weights(small()), tmp_path / "model")
    with pytest.raises(palm.ConfigError, match=told):
        palm.export(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_license(tmp_path):
    path = str(save_arrays(small(), draw_weights(small()), tmp_path / "model"))
    options = ["--format", "transformers", "--license", "mit"]
    assert main(["export", path, "--out", str(tmp_path / "out"), *options]) == 0
    assert re.search('^license: "mit"$', (tmp_path / "out" / "README.md").read_text(), re.MULTILINE)


def test_unescaped_text_would_be_seen():
    assert parsed("---\n---\n# a\n\n" + table(("x",), [["*a*"]]))[1]["a"] == ["x", "*a*"]
    with pytest.raises(AssertionError, match="a"):
        parsed("---\n---\n# a\n\n" + table(("x",), [["*a*"]]).replace("\\", ""))
    assert plain("snake_case __x__") == r"snake_case \_\_x\_\_"
