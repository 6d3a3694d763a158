"""Training in both wings: the same step, exact accumulation, mixed precision, remat, resume and hand-over."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import ask_to_stop, small

import palm
from palm import jax_impl, torch_impl
from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.progress import load_progress
from palm.data.windows import Corpus
from palm.recipes import Outcome, Remat
from palm.spec import optimizer as reference_optimizer
from palm.spec.backward import value_and_grad
from palm.spec.rounding import rms
from palm.spec.sizes import describe
from palm.training.loop import MAX_REWINDS
from palm.training.run_folder import Run

WINGS = {"torch": torch_impl, "jax": jax_impl}
TEXT = bytes(range(13)) * 40 + bytes(reversed(range(13))) * 40
STEPS = 6


def recipe(**changes: Any) -> palm.Recipe:
    defaults = {"steps": STEPS, "batch": 4, "length": 8, "warmup": 2, "validation": 0.2}
    return palm.Recipe(**{**defaults, **changes})


def config(**changes: Any) -> palm.PaLMConfig:
    return small(positions="rotary", norm="layernorm", share_kv=False, **changes)


def batch(rows: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 13, (rows, 9))


def trainer(wing: str, changes: palm.Recipe, dtype: str = "float32", **model: Any) -> Any:
    return WINGS[wing].Trainer(palm.build(config(**model), backend=wing, dtype=dtype), changes)


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(rms(a[name] - b[name]) / (rms(a[name]) or 1.0) for name in a)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("wing", WINGS)
def test_a_step_is_the_referees_gradient_clipped_and_the_referees_update(wing, optimizer):
    settings = recipe(optimizer=optimizer, z_loss=0.0, clip=0.5, precision="float64")
    weights = palm.to_numpy(palm.build(config(), backend="torch", dtype="float64"))
    rates = settings.rates(1)
    loss, grads = value_and_grad(config(), weights, batch())
    grads, norm = reference_optimizer.clipped(grads, settings.clip)
    assert norm > settings.clip  # or nothing would be clipped
    with jax.enable_x64(True):
        learner = trainer(wing, settings, "float64")
        outcome = learner.step(batch(), rates)
        found = palm.to_numpy(learner.model)
    assert abs(outcome.loss - loss) <= 1e-13 * loss
    assert abs(outcome.grad_norm - norm) <= 1e-12 * norm
    for name, array in weights.items():
        zero = np.zeros_like(array)
        update, _, _ = reference_optimizer.OPTIMIZERS[optimizer](
            array, grads[name], zero, zero, rates, settings.eps
        )
        assert rms(found[name] - (array - update)) <= 1e-12 * rms(update), name


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wing", WINGS)
def test_four_micro_batches_have_the_gradient_of_the_whole(wing):
    with jax.enable_x64(True):
        learners = [
            trainer(wing, recipe(accumulate=parts, batch=8, precision="float64"), "float64")
            for parts in (1, 4)
        ]
        outcomes = [learner.step(batch(8), recipe().rates(1)) for learner in learners]
        # After one step the first moment is the clipped gradient times 1 − β₁.
        whole, parts = (learner.moments() for learner in learners)
        other = trainer(wing, recipe(batch=8, precision="float64"), "float64")
        other.step(batch(8, seed=1), recipe().rates(1))
        assert distance(whole, parts) <= 1e-12
        assert distance(whole, other.moments()) > 1e-3
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-13)


@pytest.mark.whole
@pytest.mark.parametrize("remat", [True, "feedforward"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("wing", WINGS)
def test_recomputing_blocks_changes_nothing(wing, precision, remat):
    learners = [trainer(wing, recipe(remat=each, precision=precision)) for each in (False, remat)]
    outcomes = [learner.step(batch(), recipe().rates(1)) for learner in learners]
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-6)
    assert distance(*(learner.moments() for learner in learners)) <= 1e-5


@pytest.mark.parametrize("remat", ["typo", "on", 1, None])
@pytest.mark.parametrize("wing", WINGS)
def test_a_model_refuses_to_compute_again_what_it_does_not_know(wing, remat):
    model = palm.build(small(), backend=wing)
    tokens = np.zeros((1, 4), np.int32)
    with pytest.raises(palm.ConfigError, match=f'must be true, false or "feedforward"; got remat={remat!r}'):
        model(torch.from_numpy(tokens) if wing == "torch" else tokens, remat=remat)


def stored_bytes(wing: str, remat: Remat) -> int:
    """What the forward pass leaves for the backward pass; in JAX all that the program needs meanwhile."""
    model = palm.build(config(depth=6), backend=wing)
    tokens = np.zeros((8, 64), np.int32)
    if wing == "jax":
        gradient = jax.jit(jax.grad(lambda model: model(jnp.asarray(tokens), remat=remat).sum()))
        return gradient.lower(model).compile().memory_analysis().temp_size_in_bytes
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(torch.from_numpy(tokens), remat=remat)
    assert out.requires_grad
    return sum(sizes.values())


@pytest.mark.whole
@pytest.mark.parametrize("wing", WINGS)
def test_what_is_computed_again_is_not_stored(wing):
    everything, without_feedforward, blocks_only = (
        stored_bytes(wing, remat) for remat in (False, "feedforward", True)
    )
    assert blocks_only < 0.9 * without_feedforward
    assert without_feedforward < 0.8 * everything


@pytest.mark.sampled(1)
@pytest.mark.parametrize("wing", WINGS)
def test_mixed_precision_computes_in_bfloat16_and_learns_in_float32(wing):
    learner, wide = (trainer(wing, recipe(precision=precision)) for precision in ("bfloat16", "float32"))
    outcome, exact = (one.step(batch(), recipe().rates(1)) for one in (learner, wide))
    assert 1e-6 < abs(outcome.loss - exact.loss) / exact.loss < 0.02
    for arrays in (palm.to_numpy(learner.model), learner.moments()):
        assert {array.dtype.name for array in arrays.values()} == {"float32"}
    moved = palm.to_numpy(learner.model)
    start = palm.to_numpy(palm.build(config(), backend=wing))
    # An update far below bfloat16's last place still arrives.
    tiny = recipe(learning_rate=1e-5, warmup=0, precision="bfloat16", weight_decay=0.0)
    slow = trainer(wing, tiny)
    slow.step(batch(), tiny.rates(1))
    assert distance(start, moved) > distance(start, palm.to_numpy(slow.model)) > 1e-7


def test_mixed_precision_is_the_same_in_both_wings():
    learners = {wing: trainer(wing, recipe(precision="bfloat16")) for wing in WINGS}
    losses = [learner.step(batch(), recipe().rates(1)).loss for learner in learners.values()]
    assert abs(losses[0] - losses[1]) < 0.01 * losses[0]
    assert distance(*(learner.moments() for learner in learners.values())) < 0.1


@pytest.mark.parametrize("wing", WINGS)
def test_a_gradient_that_is_not_finite_updates_nothing_and_is_named(wing):
    weights = palm.to_numpy(palm.build(config(), backend=wing))
    weights["blocks.1.attention.out"] = weights["blocks.1.attention.out"] * np.float32(3e38)
    model = palm.from_numpy(
        config(), {name: np.clip(a, -3e38, 3e38) for name, a in weights.items()}, backend=wing
    )
    learner = WINGS[wing].Trainer(model, recipe())
    before = palm.to_numpy(learner.model)
    outcome = learner.step(batch(), recipe().rates(1))
    assert not outcome.is_finite
    assert outcome.bad
    assert set(outcome.bad) <= set(before)
    after = palm.to_numpy(learner.model)
    assert all(array.tobytes() == after[name].tobytes() for name, array in before.items())
    assert not any(array.any() for array in learner.moments().values())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("first", WINGS)
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one_and_the_other_wing_goes_on_to_rounding(
    first, tmp_path
):
    options = {"backend": first, "cadence": palm.Cadence(checkpoint_every=2, validate_every=3)}
    data = tmp_path / "text"
    data.write_bytes(TEXT)
    palm.train(config(), recipe(), data, out=tmp_path / "whole", **options)
    for name in ("same", "other"):
        palm.train(config(), recipe(), data, out=tmp_path / name, on_step=_stop_at(3), **options)
    palm.resume(tmp_path / "same")
    palm.resume(tmp_path / "other", backend="jax" if first == "torch" else "torch")

    whole, same, other = (Run(tmp_path / name) for name in ("whole", "same", "other"))
    logs = [
        [(entry["step"], entry["loss"], entry.get("val_loss")) for entry in run.entries()]
        for run in (whole, same)
    ]
    # The checkpoint at the break is measured besides.
    assert [line[:2] for line in logs[0]] == [line[:2] for line in logs[1]]
    ends = [load_progress(run.checkpoint("last")) for run in (whole, same, other)]
    for arrays in ([end[1] for end in ends], [end[2].moments for end in ends]):
        assert all(array.tobytes() == arrays[1][name].tobytes() for name, array in arrays[0].items())
        assert 0 < distance(arrays[0], arrays[2]) <= 1e-4
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(whole.entries(), other.entries(), strict=True)]
    assert max(gaps) <= 1e-5
    assert (whole.path / "loss.png").read_bytes().startswith(b"\x89PNG")


def _stop_at(step: int) -> Any:
    def on_step(entry: dict[str, Any]) -> None:
        if entry["step"] == step:
            ask_to_stop(signal.SIGTERM)

    return on_step


def test_a_run_that_is_asked_to_stop_saves_and_says_so(tmp_path):
    trained = palm.train(config(), recipe(), TEXT, backend="torch", out=tmp_path / "run", on_step=_stop_at(2))
    assert trained.interrupted
    assert trained.step == 2
    assert [path.name for path in Run(tmp_path / "run").checkpoints().values()] == [
        "step-00000000",
        "step-00000002",
    ]
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert entries == trained.log
    assert {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s"} <= entries[0].keys()


def test_resuming_on_other_data_or_longer_is_checked(tmp_path):
    palm.train(config(), recipe(steps=2), TEXT, backend="torch", out=tmp_path / "run")
    with pytest.raises(palm.RunError, match="without a path"):
        palm.resume(tmp_path / "run", steps=4)
    with pytest.raises(palm.RunError, match="differs"):
        palm.resume(tmp_path / "run", steps=4, data=TEXT[1:])
    assert palm.resume(tmp_path / "run", steps=4, data=TEXT).step == 4
    with pytest.raises(palm.RunError, match="at least 4, the steps already made"):
        palm.resume(tmp_path / "run", steps=3, data=TEXT)
    newest = tmp_path / "run" / "step-00000004"
    (newest / "training.json").write_text("{}")
    with pytest.raises(palm.CheckpointError, match="from step 2"):
        palm.resume(tmp_path / "run", data=TEXT)
    with pytest.raises(palm.RunError, match="new or empty"):
        palm.train(config(), recipe(), TEXT, backend="torch", out=tmp_path / "run")


@pytest.mark.parametrize("wing", WINGS)
def test_the_peak_is_measured_by_the_wing_in_the_thread_that_trains(wing, monkeypatch):
    threads: dict[str, set[int]] = {"product": set(), "step": set()}
    original = WINGS[wing].Trainer.step

    def step(self: Any, windows: np.ndarray, rates: Any) -> Any:
        threads["step"].add(threading.get_ident())
        return original(self, windows, rates)

    def square_product(model: Any, size: int) -> Any:
        def multiply() -> None:
            threads["product"].add(threading.get_ident())
            time.sleep(0.01)

        assert size == 1024
        return multiply

    monkeypatch.setattr(WINGS[wing].Trainer, "step", step)
    monkeypatch.setattr(WINGS[wing], "square_product", square_product)
    log = palm.train(config(), recipe(), TEXT, backend=wing).log
    assert threads["product"] == threads["step"] != set()
    flops = describe(config(), recipe().length).training_flops
    peaks = [entry["tokens_per_s"] * flops / entry["mfu"] for entry in log]
    assert max(peaks) == pytest.approx(min(peaks))
    assert 2 * 1024**3 / 1.0 < peaks[0] <= 2 * 1024**3 / 0.01


@pytest.mark.parametrize("wing", WINGS)
def test_the_product_that_is_measured_is_computed_and_waited_for(wing):
    """It takes longer the larger the matrix."""
    times = []
    for size in (16, 1024):
        product = WINGS[wing].square_product(palm.build(config(), backend=wing), size)
        product()
        taken = []
        for _ in range(5):  # whatever else the machine does only adds to a time
            started = time.process_time()
            product()
            taken.append(time.process_time() - started)
        times.append(min(taken))
    assert times[1] > 3 * times[0]


def test_the_loop_leaves_it_to_the_trainer_which_rows_to_read(monkeypatch):
    read, before, original = list[int](), list[int](), Corpus.read

    def counted(corpus: Corpus, start: int, stop: int) -> np.ndarray:
        read.append(start)
        return original(corpus, start, stop)

    def step(self: Any, windows: Any, rates: Any) -> Outcome:
        before.append(len(read))
        assert len(windows[1:2]) == 1
        return Outcome(1.0, 1.0, [])

    monkeypatch.setattr(Corpus, "read", counted)
    monkeypatch.setattr(torch_impl.Trainer, "step", step)
    palm.train(config(), recipe(steps=3, validation=0.0), TEXT, backend="torch")
    assert np.diff(before).tolist() == [1, 1]


def spike(step: int, monkeypatch: pytest.MonkeyPatch, *, times: int = 1) -> list[int]:
    """Make the torch trainer meet a loss that is not finite at its step-th call, so many times."""
    calls: list[int] = []
    original = torch_impl.Trainer.step

    def spoilt(self: Any, windows: np.ndarray, rates: Any) -> Any:
        calls.append(int(windows[:].sum()))
        if step <= len(calls) < step + times:
            return Outcome(float("nan"), float("nan"), ["blocks.0.norm"])
        return original(self, windows, rates)

    monkeypatch.setattr(torch_impl.Trainer, "step", spoilt)
    return calls


def test_a_loss_that_is_not_finite_stops_the_run_with_its_last_good_weights_saved(tmp_path, monkeypatch):
    spike(4, monkeypatch)
    with pytest.raises(palm.DivergedError, match=r"step 4.*blocks\.0\.norm.*step 3"):
        palm.train(config(), recipe(), TEXT, backend="torch", out=tmp_path / "run")
    assert Run(tmp_path / "run").checkpoint("last").name == "step-00000003"


@pytest.mark.parametrize("policy", ["stop", "rewind"])
def test_an_update_that_spoils_the_weights_is_no_checkpoint(tmp_path, monkeypatch, policy):
    """Loss and gradient were finite, but what was made of them is not: the validation loss tells."""
    calls = []
    original = torch_impl.Trainer.evaluate

    def spoilt(self: Any, windows: np.ndarray) -> float:
        calls.append(1)
        return float("inf") if len(calls) == 3 else original(self, windows)

    monkeypatch.setattr(torch_impl.Trainer, "evaluate", spoilt)
    cadence = palm.Cadence(checkpoint_every=1, validate_windows=4)
    options = {"backend": "torch", "out": tmp_path / "run", "cadence": cadence}
    settings = recipe(non_finite=policy, rewind=2, skip=1)
    if policy == "rewind":
        assert [entry["step"] for entry in palm.train(config(), settings, TEXT, **options).log] == [
            *range(1, STEPS + 1)
        ]
    else:
        with pytest.raises(palm.DivergedError, match="a validation loss of inf after step 3"):
            palm.train(config(), settings, TEXT, **options)
        assert Run(tmp_path / "run").checkpoint("last").name == "step-00000002"
    assert "Infinity" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_rewind_to_a_damaged_checkpoint_deletes_nothing(tmp_path, monkeypatch):
    settings = recipe(steps=8, non_finite="rewind", rewind=4)
    calls = spike(7, monkeypatch)
    cadence = palm.Cadence(checkpoint_every=1)
    target = tmp_path / "run" / "step-00000003" / "training.json"

    def damage(entry: dict[str, Any]) -> None:
        if entry["step"] == 6:
            target.write_text("{}")

    options = {"backend": "torch", "out": tmp_path / "run", "cadence": cadence}
    with pytest.raises(palm.CheckpointError, match=r"step-00000003.*from step 2"):
        palm.train(config(), settings, TEXT, **options, on_step=damage)
    assert list(Run(tmp_path / "run").checkpoints()) == [2, 3, 4, 5, 6]
    calls.clear()
    for file in target.parent.iterdir():
        file.unlink()
    target.parent.rmdir()
    assert palm.resume(tmp_path / "run", data=TEXT).step == 8


@pytest.mark.whole
def test_rewinds_far_apart_are_not_counted_together(tmp_path, monkeypatch):
    original, calls = torch_impl.Trainer.step, []

    def spoilt(self: Any, windows: np.ndarray, rates: Any) -> Any:
        calls.append(1)
        bad = len(calls) % 6 == 0
        return Outcome(float("nan"), float("nan"), []) if bad else original(self, windows, rates)

    monkeypatch.setattr(torch_impl.Trainer, "step", spoilt)
    settings = recipe(steps=60, non_finite="rewind", rewind=2, skip=1)
    cadence = palm.Cadence(checkpoint_every=1, validate_every=0, validate_windows=1)
    trained = palm.train(config(), settings, TEXT, backend="torch", out=tmp_path / "run", cadence=cadence)
    assert trained.step == 60
    assert len(calls) // 6 > MAX_REWINDS


def test_the_papers_policy_goes_back_and_skips_what_led_there(tmp_path, monkeypatch):
    settings = recipe(steps=8, non_finite="rewind", rewind=2, skip=5)
    plain = palm.train(config(), settings, TEXT, backend="torch", out=tmp_path / "plain")
    calls = spike(6, monkeypatch)
    cadence = palm.Cadence(checkpoint_every=2)
    trained = palm.train(config(), settings, TEXT, backend="torch", out=tmp_path / "run", cadence=cadence)
    assert [entry["step"] for entry in trained.log] == list(range(1, 9))
    assert len(calls) == 5 + 1 + 4  # to the spike; the spike; again from step 4
    same, skipped = trained.log[:4], trained.log[4:]
    assert [entry["loss"] for entry in same] == [entry["loss"] for entry in plain.log[:4]]
    assert all(a["loss"] != b["loss"] for a, b in zip(skipped, plain.log[4:], strict=True))
    assert load_progress(Run(tmp_path / "run").checkpoint("last"))[2].fields["row"] == 4 * 4 + 5 * 4 + 4 * 4


def test_a_run_that_diverges_again_and_again_is_given_up(tmp_path, monkeypatch):
    spike(2, monkeypatch, times=100)
    with pytest.raises(palm.DivergedError, match="after 10 rewinds"):
        palm.train(config(), recipe(non_finite="rewind"), TEXT, backend="torch", out=tmp_path / "run")


def test_a_rewind_goes_back_as_far_as_it_says_whatever_is_kept(tmp_path, monkeypatch):
    settings = recipe(steps=8, non_finite="rewind", rewind=4, skip=1)
    spike(7, monkeypatch)
    cadence = palm.Cadence(checkpoint_every=1, keep=1)
    palm.train(config(), settings, TEXT, backend="torch", out=tmp_path / "run", cadence=cadence)
    # From step 7 to 3; the skipped batch is not far enough: what comes next is behind the bad one.
    assert load_progress(Run(tmp_path / "run").checkpoint("last"))[2].fields["row"] == 7 * 4 + 5 * 4


def test_a_resumed_run_keeps_its_attention_path_and_one_that_fails_to_start_keeps_its_settings(tmp_path):
    options = {"backend": "torch", "out": tmp_path / "run", "attention": "textbook"}
    palm.train(config(), recipe(steps=2), TEXT, **options)
    before = Run(tmp_path / "run").settings()
    with pytest.raises(palm.BackendError):
        palm.resume(tmp_path / "run", steps=5, data=TEXT, device="nowhere")
    assert Run(tmp_path / "run").settings() == before
    assert palm.resume(tmp_path / "run", steps=3, data=TEXT).model.path == "textbook"
    assert Run(tmp_path / "run").settings()["attention"] == "textbook"


@pytest.mark.whole
def test_an_attention_path_of_one_framework_does_not_carry_over_to_the_other(tmp_path):
    palm.train(config(), recipe(steps=2), TEXT, backend="torch", out=tmp_path / "run", attention="sdpa")
    assert palm.resume(tmp_path / "run", steps=3, data=TEXT).model.path == "sdpa"
    handed = palm.resume(tmp_path / "run", steps=4, data=TEXT, backend="jax")
    assert handed.model.blocks.attention.path == "blockwise"
    # A name of a path that is no more, as older runs have it.
    run = Run(tmp_path / "run")
    with run.locked():
        run.write_settings(run.settings() | {"attention": "fused"})
    assert palm.resume(tmp_path / "run", steps=5, data=TEXT).step == 5


def test_a_run_that_cannot_start_leaves_nothing(tmp_path):
    asks = palm.Cadence(sample_every=5, sample_prompt="é")
    for error, told, settings, text, cadence in (
        (palm.DataError, "validation must be a share", recipe(validation=0.01), TEXT[:200], None),
        (palm.DataError, "data must be at least 9 tokens long.*got 5", recipe(validation=0), TEXT[:5], None),
        (palm.DataError, "data must be at least 18 tokens long.*got 9", recipe(), TEXT[:9], None),
        (palm.TokenError, "token=195", recipe(), TEXT, asks),
    ):
        options = {"backend": "torch", "out": tmp_path / "run", "cadence": cadence}
        with pytest.raises(error, match=told):
            palm.train(config(), settings, text, **options)
        assert list(tmp_path.iterdir()) == []
    for arguments in (("tiny", recipe()), (config(), "bytes")):
        with pytest.raises(palm.ConfigError, match=r"must be a (PaLMConfig|Recipe)"):
            palm.train(*arguments, TEXT, backend="torch")


@pytest.mark.parametrize("text", ["no such file", "A whole text. " * 1000, "a\0b"])
def test_a_text_where_a_path_is_expected_is_to_be_passed_as_bytes(text):
    with pytest.raises(palm.DataError, match=r"data must be a readable file or folder.*text\.encode\(\)"):
        palm.train(palm.preset("tiny"), palm.recipe("bytes"), text, backend="torch")


def test_a_run_inside_its_own_data_is_refused(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    with pytest.raises(palm.RunError, match="out must be outside of data"):
        palm.train(config(), recipe(), tmp_path, backend="torch", out=tmp_path / "a" / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]


def test_data_that_changes_under_a_run_ends_it_with_a_checkpoint(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(TEXT)

    def cut(entry: dict[str, Any]) -> None:
        if entry["step"] == 3:
            text.write_bytes(TEXT[:50])

    with pytest.raises(palm.DataError, match="left alone while it is read"):
        palm.train(config(), recipe(), text, backend="torch", out=tmp_path / "run", on_step=cut)
    assert Run(tmp_path / "run").checkpoint("last").name == "step-00000003"
    moved = tmp_path / "moved"
    moved.write_bytes(TEXT)
    cadence = palm.Cadence(checkpoint_every=1)
    assert palm.resume(tmp_path / "run", data=moved, steps=5, cadence=cadence).step == 5
    assert palm.resume(tmp_path / "run", steps=6).step == 6  # where the data is now, and the pace, are kept
    assert list(Run(tmp_path / "run").checkpoints()) == [4, 5, 6]


def test_a_torch_run_takes_gradients_whatever_the_mode_around_it():
    expected = palm.train(config(), recipe(), TEXT, backend="torch").log
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = palm.train(config(), recipe(), TEXT, backend="torch").log
        assert [entry["loss"] for entry in found] == [entry["loss"] for entry in expected]


def test_a_run_on_the_meta_device_is_refused(tmp_path: Path):
    for options in ({}, {"device": "meta"}):
        with (
            torch.device("cpu" if options else "meta"),
            pytest.raises(palm.BackendError, match="must have values to be trained; got one on the meta"),
        ):
            palm.train(config(), recipe(), TEXT, backend="torch", out=tmp_path / "run", **options)
    assert palm.train(config(), recipe(), TEXT, backend="torch", out=tmp_path / "run").step == recipe().steps


def test_rewinding_needs_a_folder():
    with pytest.raises(palm.ConfigError, match="out must be given"):
        palm.train(config(), recipe(non_finite="rewind"), TEXT, backend="torch")


def test_a_trained_checkpoint_is_an_ordinary_one_too(tmp_path: Path):
    trained = palm.train(config(), recipe(), TEXT, backend="jax", out=tmp_path / "run")
    path = Run(tmp_path / "run").checkpoint("best")
    assert load_arrays(path)[0] == config()
    model = palm.load(Run(tmp_path / "run").checkpoint("last"), backend="torch")
    ours, theirs = palm.to_numpy(model), palm.to_numpy(trained.model)
    assert all(array.tobytes() == theirs[name].tobytes() for name, array in ours.items())
