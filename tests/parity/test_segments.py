"""Segments and labels: packed documents against each alone, padding, and losses of some positions."""

import jax
import numpy as np
import pytest

import palm
from palm.backends import ATTENTION_PATHS
from palm.spec import backward, forward
from palm.spec.tokens import IGNORED


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


LENGTHS = (3, 130, 1, 57)
SEGMENTS = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
CASES = [
    (backend, path, positions, share_kv)
    for backend in palm.available_backends()
    for path in ATTENTION_PATHS[backend]
    if path in {"textbook", "blockwise", "sdpa"}
    for positions in ("alibi", "rotary")
    if not (path == "sdpa" and positions == "alibi")
    for share_kv in (True, False)
]


def config_of(positions: str, *, share_kv: bool = True) -> palm.PaLMConfig:
    return palm.PaLMConfig(
        num_tokens=40, dim=24, depth=2, heads=3, dim_head=8, positions=positions, share_kv=share_kv
    )


def documents(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 40, length) for length in LENGTHS]


def built(backend: str, config: palm.PaLMConfig, attention: str = "auto"):
    return palm.build(config, backend=backend, dtype="float64", attention=attention)


def largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def mean_of(losses: list[tuple[float, dict[str, np.ndarray]]]) -> tuple[float, dict[str, np.ndarray]]:
    """Losses and gradients of documents, each weighted by what it predicts."""
    counts = [length - 1 for length in LENGTHS if length > 1]
    shares = [count / sum(counts) for count in counts]
    loss = sum(share * loss for share, (loss, _) in zip(shares, losses, strict=True))
    names = losses[0][1]
    grads = {
        name: np.sum([share * grads[name] for share, (_, grads) in zip(shares, losses, strict=True)], 0)
        for name in names
    }
    return loss, grads


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("backend", "path", "positions", "share_kv"), CASES)
def test_packed_documents_compute_what_each_computes_alone(backend, path, positions, share_kv):
    model = built(backend, config_of(positions, share_kv=share_kv), path)
    packed = np.concatenate(documents())
    found = palm.activations(model, packed[None], segments=SEGMENTS[None])["logits"][0]
    alone = np.concatenate([palm.activations(model, document)["logits"] for document in documents()])
    assert largest(found, alone) <= 1e-12
    # The control: without segments a document sees those before it.
    assert largest(palm.activations(model, packed)["logits"], alone) > 1e-3

    loss, grads = palm.value_and_grad(model, packed[None], segments=SEGMENTS[None])
    exact, of_each = mean_of([palm.value_and_grad(model, d) for d in documents() if len(d) > 1])
    assert abs(loss - exact) <= 1e-12
    assert max(largest(grads[name], of_each[name]) for name in grads) <= 1e-12


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("backend", "path", "positions", "share_kv"), CASES)
def test_the_referee_gives_the_same_taps_losses_and_gradients(backend, path, positions, share_kv):
    model = built(backend, config_of(positions, share_kv=share_kv), path)
    config, weights = palm.config_of(model), palm.to_numpy(model)
    tokens = np.stack([np.concatenate(documents(seed)) for seed in (0, 1)])
    segments = np.stack([SEGMENTS, SEGMENTS[::-1]])
    labels = np.where(np.random.default_rng(2).random(tokens.shape) < 0.3, IGNORED, tokens)
    found = palm.activations(model, tokens, segments=segments)
    exact = forward.activations(config, weights, tokens, segments)
    assert max(largest(found[name], exact[name]) for name in exact) <= 1e-12
    for given in ({"segments": segments}, {"labels": labels}, {"segments": segments, "labels": labels}):
        loss, grads = palm.value_and_grad(model, tokens, **given)
        referee, of_referee = backward.value_and_grad(config, weights, tokens, **given)
        assert abs(loss - referee) <= 1e-13
        assert max(largest(grads[name], of_referee[name]) for name in grads) <= 1e-13
    assert abs(loss - palm.value_and_grad(model, tokens)[0]) > 1e-4


@pytest.mark.parametrize("backend", palm.available_backends())
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
def test_padding_on_either_side_changes_nothing(backend, positions):
    """A mask of 0 and 1, as tokenizers give it, is segments."""
    model = built(backend, config_of(positions))
    text = documents()[1]
    alone = palm.activations(model, text)["logits"]
    for before, after in ((9, 0), (0, 9), (130, 4)):
        mask = np.pad(np.ones_like(text), (before, after))
        padded = np.pad(text, (before, after), constant_values=7)
        logits = palm.activations(model, padded, segments=mask)["logits"]
        assert largest(logits[before : before + len(text)], alone) <= 1e-12


@pytest.mark.parametrize("backend", palm.available_backends())
def test_a_loss_of_no_position_is_nothing_and_has_no_gradient(backend):
    model = built(backend, config_of("rotary"))
    loss, grads = palm.value_and_grad(model, documents()[1], labels=np.full(LENGTHS[1], IGNORED))
    assert loss == 0
    assert not any(np.any(grad) for grad in grads.values())


@pytest.mark.parametrize("backend", palm.available_backends())
@pytest.mark.parametrize(
    ("segments", "told"), [(SEGMENTS[:-1], r"shape=\(190,\)"), (SEGMENTS * 1.0, "no integers")]
)
def test_segments_that_fit_no_tokens_are_refused(backend, segments, told):
    model = built(backend, config_of("rotary"))
    with pytest.raises(palm.TokenError, match=told):
        palm.activations(model, np.concatenate(documents()), segments=segments)


class TestTraining:
    """`Recipe(pack=…)`: the last token of each document is 0."""

    @staticmethod
    def windows() -> np.ndarray:
        rng = np.random.default_rng(3)
        windows = rng.integers(1, 40, (4, 65))
        windows[0, [5, 6, 40]] = 0
        windows[2, ::9] = 0
        return windows

    @staticmethod
    def trained(backend: str, **changes):
        recipe = palm.recipe("adamw", precision="float64", batch=4, length=64, warmup=0, **changes)
        model = palm.convert(built("torch", config_of("rotary")), backend=backend)
        trainer = palm.backends.wing(backend).Trainer(model, recipe)
        outcomes = [trainer.step(TestTraining.windows(), recipe.rates(step)) for step in (1, 2)]
        return recipe, outcomes, palm.to_numpy(trainer.model), trainer.evaluate(TestTraining.windows())

    @pytest.mark.parametrize("backend", palm.available_backends())
    def test_the_loss_is_that_of_the_documents(self, backend):
        windows = self.windows()
        ends = windows == 0
        segments = np.cumsum(ends, -1) - ends
        labels = np.where(np.diff(segments, axis=-1, prepend=segments[:, :1]) != 0, IGNORED, windows)
        weights = palm.to_numpy(built("torch", config_of("rotary")))
        config = config_of("rotary").resolve("torch")
        exact, grads = backward.value_and_grad(config, weights, windows, segments=segments, labels=labels)
        _, [first, _], _, _ = self.trained(backend, pack=0, z_loss=0.0)
        assert abs(first.loss - exact) <= 1e-13
        assert abs(first.grad_norm - np.sqrt(sum((g**2).sum() for g in grads.values()))) <= 1e-12
        _, [other, _], _, _ = self.trained(backend, z_loss=0.0)
        assert abs(other.loss - exact) > 1e-3

    def test_both_wings_and_any_number_of_micro_batches_learn_the_same(self):
        _, one, weights, loss = self.trained("torch", pack=0)
        for backend, accumulate in (("torch", 2), ("jax", 1), ("jax", 4)):
            _, outcomes, others, val_loss = self.trained(backend, pack=0, accumulate=accumulate)
            assert max(abs(a.loss - b.loss) for a, b in zip(one, outcomes, strict=True)) <= 1e-13
            assert abs(loss - val_loss) <= 1e-12
            assert max(largest(weights[name], others[name]) for name in weights) <= 1e-12

    @pytest.mark.parametrize("backend", palm.available_backends())
    def test_a_loss_in_parts_is_the_same(self, backend, monkeypatch):
        _, whole, weights, _ = self.trained(backend, pack=0)
        monkeypatch.setattr(f"palm.{backend}_impl.loss.MOST_LOGITS", 40 * 50)
        _, parts, others, _ = self.trained(backend, pack=0, accumulate=2)
        assert max(abs(a.loss - b.loss) for a, b in zip(whole, parts, strict=True)) <= 1e-13
        assert max(largest(weights[name], others[name]) for name in weights) <= 1e-12
