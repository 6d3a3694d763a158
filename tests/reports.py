"""Comparisons for what shows them: made up ones, and ones of sides made of the referee."""

import dataclasses
import re

import numpy as np

from palm.config import PaLMConfig
from palm.parity.drift.drift import RUNS, butterfly
from palm.parity.drift.trajectory import Trajectory
from palm.parity.finding import Finding
from palm.parity.judge.predictions import Prediction
from palm.parity.recording.recording import Recording
from palm.parity.result import Comparison
from palm.spec import backward, forward
from palm.spec.initial import initial_value
from palm.spec.parameters import parameters
from palm.spec.taps import tap_names

CONFIG = PaLMConfig(num_tokens=256, dim=16, depth=3, heads=2, dim_head=8).resolve("torch")
TEXT = b"def f(x):\n\treturn x\n"
FAULTY = ("blocks.1.q", "blocks.1.attention")
PREDICTION = Prediction(
    sequence=1,
    position=3,
    context="a\n\tb",
    target=" ",
    a=(("\x00", 0.5), ("<b>", 0.25), ("c", 0.125)),
    b=(("c", 0.375), ("\u202e", 0.25), ("  ", 0.125)),
    divergence=0.0625,
)


def finding(name, kind, **measured):
    plain = {
        "error_a": 1e-7,
        "error_b": 2e-7,
        "cross": 2.5e-7,
        "ratio": 1.1,
        "bound_a": 1e-5,
        "bound_b": 1e-5,
    }
    return Finding(name, kind, **{**plain, "elements": 1280, "fault": None, "nature": None, **measured})


def comparison(depth=2, labels=("torch", "jax"), **special):
    """A comparison whose findings are ordinary, but for those named in `special` (with _ for . and :)."""
    config = PaLMConfig(num_tokens=16, dim=8, depth=depth, heads=2, dim_head=4).resolve("torch")
    findings = [finding(name, "tap") for name in tap_names(depth)]
    findings.append(finding("loss", "loss"))
    findings += [finding(f"grad:{name}", "gradient") for name in parameters(config)]
    changed = {re.sub(r"\W", "_", f.name): i for i, f in enumerate(findings)}
    for name, measured in special.items():
        i = changed[name]
        findings[i] = dataclasses.replace(findings[i], **measured)
    empty = {"weights": {}, "taps": {}, "grads": {}, "exact_taps": {}, "exact_grads": {}}
    sides = [
        Recording(
            label=label,
            config=config,
            dtype="float32",
            tokens=np.zeros((2, 5), int),
            loss=2.772588722239781,
            exact_loss=2.7725887222397811,
            environment={"python": "3.11.7", "device": device},
            **empty,
        )
        for label, device in zip(labels, ("cpu", "gpu"), strict=True)
    ]
    return Comparison(
        *labels,
        findings=tuple(findings),
        differences=(),
        doubts=(),
        weights_identical=True,
        top1_agreement=0.99609375,
        kl_divergence=1.25e-13,
        predictions=(PREDICTION,),
        losses=(2.75, 2.5, 2.625),
        referee=True,
        recordings=tuple(sides),
    )


def trained(steps, gap=1e-6, not_finite=None):
    """A report with a training of torch, of JAX whose loss is `gap` above, and of the control."""
    shift = dict(zip(RUNS, (0.0, gap, 2e-6), strict=True))
    ways = []
    for run in RUNS:
        losses = np.linspace(5, 4, steps + 1) + shift[run]
        if run == "jax" and not_finite is not None:
            losses[not_finite:] = [np.nan, np.inf, *losses[not_finite + 2 :]]
        weights = np.full((steps + 1, 10), 1 + shift[run])
        if run == "control":  # the move that it starts with does not count, what that changes does
            weights[0] = 1
        ways.append(Trajectory(losses, np.ones(steps + 1), weights, parameters=1234))
    return {**comparison().to_dict(), "training": butterfly(*ways).to_dict()}


def recording(label: str, seed: int, faulty: bool = False) -> Recording:
    """The referee's own values with rounding's errors, and taps that no rounding explains if `faulty`."""
    rng = np.random.default_rng(seed)
    tokens = np.frombuffer(TEXT, np.uint8).astype(int).reshape(2, -1)
    weights = {p.name: initial_value(p, 0, "float32") for p in parameters(CONFIG).values()}
    taps = forward.activations(CONFIG, weights, tokens)
    loss, grads = backward.value_and_grad(CONFIG, weights, tokens)
    if faulty:
        taps |= {name: taps[name] * 1.01 for name in FAULTY}

    def rounded(arrays):
        return {
            n: (x * (1 + 1e-7 * rng.standard_normal(x.shape))).astype("float32") for n, x in arrays.items()
        }

    return Recording(
        label=label,
        config=CONFIG,
        dtype="float32",
        tokens=tokens,
        weights=weights,
        taps=rounded(taps),
        grads=rounded(grads),
        loss=float(np.float32(loss)),
        exact_taps=taps,
        exact_grads=grads,
        exact_loss=loss,
        environment={"device": label, "python": "3.11.7"},
    )


def way(seed: int) -> Trajectory:
    """A training of 20 steps with rounding's errors, that doubles them in each."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((21, 50)) * 1e-7 * 2.0 ** np.arange(21)[:, None]
    losses = np.linspace(5, 4, 21) + 1e-6 * rng.standard_normal(21)
    return Trajectory(losses, np.ones(21), 1 + noise, parameters=50)
