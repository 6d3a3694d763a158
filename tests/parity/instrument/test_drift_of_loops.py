"""Training loops that are not palm's: a small network with AdamW in torch, its port to optax, and NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import palm
from palm.parity.drift import Trajectory, drift

STEPS = 12
FAULTS = ("warmup", "beta2", "no bias correction", "L2", "no decay")
# In bfloat16 rounding is larger than what these change in twelve steps.
NOT_IN_BFLOAT16 = {"beta2", "no decay"}
WIDE = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.float32}


def rate(k):
    """Linear warm-up over ten updates; k counts from 0."""
    return 1e-2 * min(1, (k + 1) / 10)


def batches(seed=0):
    draw = np.random.default_rng(seed)
    target = draw.standard_normal((8, 4))
    inputs = draw.standard_normal((STEPS, 16, 8))
    return [(x.astype(np.float32), np.tanh(x @ target).astype(np.float32)) for x in inputs]


def torch_loop(precision, seed=0):
    """A step that changes model, optimizer and schedule in place, and its state."""
    torch.manual_seed(seed)
    layers = torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Dropout(0.0), torch.nn.Linear(32, 4)
    model = torch.nn.Sequential(*layers).to(WIDE[precision])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate(0), betas=(0.9, 0.999), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: rate(k) / rate(0))

    def step(state, batch):
        x, y = (torch.tensor(array, dtype=WIDE[precision]) for array in batch)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        return state, loss

    return step, (model, optimizer, schedule)


def uncorrected(b1, b2):
    """Adam without bias correction."""

    def update(updates, state, params=None):
        first, second = (
            jax.tree.map(lambda m, g, b=b, p=p: b * m + (1 - b) * g**p, moment, updates)
            for moment, b, p in zip(state, (b1, b2), (1, 2), strict=True)
        )
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), first, second), (first, second)

    return optax.GradientTransformation(lambda params: (jax.tree.map(jnp.zeros_like, params),) * 2, update)


def optax_loop(model, precision, fault=None):
    """The same in JAX, with kernels (in, out), and its state (params, state of the optimizer)."""
    rates = np.array([rate(k + (fault == "warmup")) for k in range(STEPS)])
    b2 = 0.98 if fault == "beta2" else 0.999
    adam = uncorrected(0.9, b2) if fault == "no bias correction" else optax.scale_by_adam(0.9, b2)
    decay = optax.add_decayed_weights(0.0 if fault == "no decay" else 0.1)
    order = (decay, adam) if fault == "L2" else (adam, decay)
    chain = optax.chain(*order, optax.scale_by_learning_rate(lambda k: jnp.asarray(rates)[k]))
    computed = jnp.bfloat16 if precision == "bfloat16" else str(WIDE[precision]).removeprefix("torch.")

    def loss(params, x, y):
        low = {name: array.astype(computed) for name, array in params.items()}
        hidden = jnp.tanh(x.astype(computed) @ low["in"] + low["in_bias"])
        return jnp.mean((hidden @ low["out"] + low["out_bias"] - y) ** 2)

    @jax.jit
    def step(state, batch):
        params, moments = state
        value, gradients = jax.value_and_grad(loss)(
            params, *(array.astype(params["in"].dtype) for array in batch)
        )
        updates, moments = chain.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    names = ("in", "in_bias", "out", "out_bias")
    arrays = (parameter.detach().numpy().T for parameter in model.parameters())
    params = {name: jnp.array(array) for name, array in zip(names, arrays, strict=True)}
    return step, (params, chain.init(params))


def in_torch_names(state):
    """The weights of the port under the names and in the layout of torch."""
    params, _ = state
    names = {"0.weight": "in", "0.bias": "in_bias", "3.weight": "out", "3.bias": "out_bias"}
    return {name: params[own].T for name, own in names.items()}


def low(precision):
    return "bfloat16" if precision == "bfloat16" else None


@pytest.fixture(scope="module", params=WIDE)
def mine(request):
    """The trajectory of torch, and what makes that of a port."""
    precision = request.param
    with jax.enable_x64(precision == "float64"):
        step, state = torch_loop(precision)
        recorded = Trajectory.record(step, state, batches(), label="mine", precision=low(precision))

        def port(fault=None):
            step, start = optax_loop(state[0], precision, fault)
            options = {"label": "port", "weights": in_torch_names, "precision": low(precision)}
            return Trajectory.record(step, start, batches(), **options)

        yield precision, recorded, port


def test_a_right_port_drifts_no_faster_than_rounding(mine):
    _, recorded, port = mine
    found = drift(recorded, port())
    assert found.agree, found.verdict
    assert found.ratio < 1.5
    assert found.verdict.startswith("over 12 training steps mine and port drift apart no faster than")
    assert set(found.losses) == set(found.to_dict()["losses"]) == {"mine", "port", "control"}
    assert found.distance[0] == 0
    assert (found.followed, found.parameters) == (420, 420)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_port_is_more_than_rounding(mine, fault):
    precision, recorded, port = mine
    found = drift(recorded, port(fault))
    assert found.outcome == ("agree" if precision == "bfloat16" and fault in NOT_IN_BFLOAT16 else "differ")
    if fault in ("warmup", "no bias correction", "L2"):  # wrong in the first step: seen in the first step
        assert found.octaves[0].ratio > 3
        assert "by more than rounding explains, from step 1 on" in found.verdict


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("precision", "seed"), [*itertools.product(WIDE, range(1, 5))])
def test_right_ports_never_alarm(precision, seed):
    with jax.enable_x64(precision == "float64"):
        step, state = torch_loop(precision, seed)
        options = {"precision": low(precision), "seed": seed}
        recorded = Trajectory.record(step, state, batches(seed), label="mine", **options)
        step, start = optax_loop(state[0], precision)
        port = Trajectory.record(step, start, batches(seed), label="port", weights=in_torch_names, **options)
    assert drift(recorded, port).agree


def numpy_loop(rate=0.1):
    """Gradient descent on a line from weights of 0, in place, with noise from the global generator."""
    weights = {"w": np.zeros((3, 2), np.float32), "n": np.array([1, 2])}

    def step(state, batch):
        noise = 1e-3 * np.random.standard_normal((3, 2))
        gradient = 2 * batch.T @ (batch @ state["w"] - 1) / len(batch) + noise
        state["w"] -= (rate * gradient).astype(np.float32)
        return state, np.mean((batch @ state["w"] - 1) ** 2)

    return step, weights


def lines():
    return list(np.random.default_rng(3).standard_normal((6, 5, 3)).astype(np.float32))


def test_a_numpy_loop_that_starts_from_zero_agrees_with_itself_and_not_with_another_rate():
    np.random.seed(1)
    sides = [Trajectory.record(*numpy_loop(r), lines(), label=str(r)) for r in (0.1, 0.1001)]
    again = Trajectory.record(*numpy_loop(), lines(), label="again")
    assert drift(sides[0], again).distance.max() == 0  # the generator was put back
    assert drift(sides[0], again).agree
    assert not drift(*sides).agree


def test_everything_is_as_before():
    step, state = torch_loop("float32")
    model, optimizer, schedule = state
    for batch in batches()[:2]:  # a state that is not new
        step(state, batch)
    torch.manual_seed(5)
    moments = {p: {k: v.clone() for k, v in one.items()} for p, one in optimizer.state.items()}
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    rates, generator = optimizer.param_groups[0]["lr"], torch.get_rng_state()
    Trajectory.record(step, state, batches(), label="mine")
    assert all(map(torch.equal, weights, model.parameters()))
    assert all(map(torch.equal, gradients, (parameter.grad for parameter in model.parameters())))
    assert (optimizer.param_groups[0]["lr"], schedule.last_epoch) == (rates, 2)
    assert torch.equal(generator, torch.get_rng_state())
    for parameter, own in optimizer.state.items():
        assert all(torch.equal(own[name], value) for name, value in moments[parameter].items())


def test_everything_is_as_before_also_if_a_step_fails():
    step, state = numpy_loop()

    def failing(state, batch):
        step(state, batch)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Trajectory.record(failing, state, lines(), label="mine")
    assert not state["w"].any()


def test_a_step_may_donate_its_arguments():
    step = jax.jit(lambda w, x: (w - 0.1 * x, jnp.sum(w)), donate_argnums=0)
    start = jnp.ones(3)
    Trajectory.record(step, start, [jnp.ones(3)] * 2, label="mine", weights=lambda w: {"w": w})
    assert start.tolist() == [1, 1, 1]


def changed(state, batch):
    return {name: value + batch for name, value in state.items()}, 1.0


def ones(**shapes):
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("step", "weights", "says"),
    [
        (
            lambda s, b: (s, 1.0),
            None,
            "a step must change the weights; got the same after 2 steps of mine. Return",
        ),
        (
            lambda s, b: s,
            None,
            "must give two things, the new state and the loss; got dict of mine. End it with",
        ),
        (
            lambda s, b: (s, np.ones(2)),
            None,
            "the loss of a step must be one number; got float64[2] of mine. Give",
        ),
        (
            changed,
            lambda s: [s["w"]],
            "weights must give a dict of the weights by name; got list of mine. Pass",
        ),
        (changed, lambda s: {"n": 3}, 'floating-point numbers; got int for "n" of mine. Leave it out'),
        (
            changed,
            lambda s: {"w": 2.5 * s["w"]},
            "must only pick and rearrange arrays that are in the state; got the",
        ),
    ],
    ids=lambda x: None if not isinstance(x, str) else x[:20],
)
def test_what_is_no_loop_is_told(step, weights, says):
    options = {} if weights is None else {"weights": weights}
    with pytest.raises(palm.PalmError) as error:
        Trajectory.record(step, ones(w=(2, 3)), [1.0, 2.0], label="mine", **options)
    assert says in str(error.value)


def recorded(label="port", steps=2, seed=0, start=None):
    start = ones(a=(2, 3), b=2) if start is None else start
    return Trajectory.record(changed, start, [1.0] * steps, label=label, seed=seed)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"start": ones(a=(2, 3), c=2)},
            "of the same names; got only of mine: b; only of port: c. Pass weights=",
        ),
        (
            {"start": ones(a=(3, 2), b=2)},
            '"a" must have one shape on both sides; got [2, 3] of mine and [3, 2] of',
        ),
        (
            {"start": {"a": ones(a=(2, 3))["a"], "b": np.float32([1, 2])}},
            "must start from the same weights; got a",
        ),
        (
            {"steps": 3},
            "as many steps, with one seed; got 2 steps and seed 0 of mine, 3 and 0 of port. Record",
        ),
        (
            {"seed": 1},
            "as many steps, with one seed; got 2 steps and seed 0 of mine, 2 and 1 of port. Record",
        ),
        (
            {"label": "mine"},
            "labels must be two names other than \"control\"; got 'mine' and 'mine'. Pass label=",
        ),
    ],
    ids=lambda x: None if isinstance(x, str) else next(iter(x)),
)
def test_trajectories_that_cannot_be_compared_are_refused(options, says):
    with pytest.raises(palm.PalmError) as error:
        drift(recorded("mine"), recorded(**options))
    assert says in str(error.value)


def test_no_batch_and_an_unknown_precision_are_refused():
    with pytest.raises(palm.PalmError, match="batches must hold at least one batch; got none for mine"):
        recorded("mine", steps=0)
    with pytest.raises(palm.PalmError, match=r"precision must be one of .*; got precision='fp8'. Choose one"):
        Trajectory.record(changed, ones(a=2), [1.0], label="mine", precision="fp8")
