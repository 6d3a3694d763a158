"""The tasks of EleutherAI's lm-evaluation-harness (lm-eval) on a model of either backend."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import config_of, model_of
from palm.data.tokenizer import load_tokenizer
from palm.errors import ConfigError, DataError, MissingFrameworkError
from palm.fields import integer
from palm.generation.generate import Prompt, generate
from palm.generation.prompts import need_tokenizer
from palm.models import tokenizer_of
from palm.training.evaluation import LENGTH, score, windows_of

# Rows are filled up to a multiple of this, so that compiled programs serve many.
_BLOCK = 64
# What other packages call the number of new tokens, and how many these are if a task does not say.
_NEW = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NEW_TOKENS = 256
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class HarnessModel:
    """What lm-eval asks of a model: `harness_model` makes one, of lm-eval's own class `LM` as well.

    `length` is the largest number of tokens that a prediction sees. What is longer loses its start. A text
    without a context is predicted after the last token of a newline.
    """

    def __init__(self, model: Any, *, length: int, batch: int | None, tokenizer: Any) -> None:
        super().__init__()
        self._model, config = model_of(model), config_of(model)
        known = tokenizer_of(model) if tokenizer is None else load_tokenizer(tokenizer)
        self._tokenizer = need_tokenizer(known, config, "tasks must come with a tokenizer")
        self._length = integer("length", length, least=1)
        self._batch = None if batch is None else integer("batch", batch, least=1)
        self._prefix = self._tokenizer.encode("\n")[-1:]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-probability in nats, and whether greedy
        decoding would write it.

        Raises `DataError` for a continuation without tokens or of more than `length`.
        """
        pairs = [self._encoded(*request.args) for request in requests]
        rows = [np.concatenate(pair)[-(self._length + 1) :] for pair in pairs]
        scored = self._scored(rows, [len(continuation) for _, continuation in pairs])
        return self._kept("loglikelihood", requests, scored)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text in nats, in windows that predict each token once."""
        texts = [
            np.concatenate([self._prefix, self._tokenizer.encode(*request.args)]) for request in requests
        ]
        windows = [list(windows_of(len(ids), self._length, self._length)) for ids in texts]
        pairs = list(zip(texts, windows, strict=True))
        rows = [ids[window.start : window.stop] for ids, own in pairs for window in own]
        counts = [window.predicted for own in windows for window in own]
        found = iter([logprob for logprob, _ in self._scored(rows, counts)])
        sums = [sum((next(found) for _ in own), 0.0) for own in windows]
        return self._kept("loglikelihood_rolling", requests, sums)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each (context, options), up to the texts of `until`, with a KV cache.

        Greedy, unless `do_sample` is set or a temperature without it. Raises `ConfigError` for options that
        palm does not know, and for new tokens that leave no place for a context.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts: dict[int, str] = {}
        for told, numbers in groups.items():
            contexts = [requests[number].args[0] for number in numbers]
            texts.update(zip(numbers, self._generated(contexts, json.loads(told)), strict=True))
        return self._kept("generate_until", requests, [texts[number] for number in range(len(requests))])

    def _encoded(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Their ids. Spaces between the two belong to the continuation, as tokenizers have it."""
        kept = context.rstrip()
        whole = self._tokenizer.encode(context + continuation)
        before = self._tokenizer.encode(kept) if kept else whole[:0]
        predicted = whole[len(before) :]
        if not 1 <= len(predicted) <= self._length:
            raise DataError(
                f"continuation must have 1 to length={self._length} tokens; got {len(predicted)} of "
                f"{continuation[:40]!r}. Use a larger length, or another task."
            )
        return (before if len(before) else self._prefix), predicted

    def _scored(self, rows: Sequence[np.ndarray], counts: Sequence[int]) -> list[tuple[float, bool]]:
        """Of the last `counts` tokens of each row: their log-probability; whether all are the likeliest."""
        found: dict[int, tuple[float, bool]] = {}
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(min(self._length, -(-(len(row) - 1) // _BLOCK) * _BLOCK), []).append(number)
        for length, numbers in groups.items():
            scored = score(self._model, (rows[number] for number in numbers), length, self._batch)
            for number, (logprobs, likeliest) in zip(numbers, scored, strict=True):
                last = slice(-counts[number], None)
                found[number] = float(logprobs[last].sum()), bool(likeliest[last].all())
        return [found[number] for number in range(len(rows))]

    def _generated(self, contexts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """What follows each context. Raises what `generate_until` raises."""
        new, stop, sampling = _generation_options(options)
        if new >= self._length:
            raise ConfigError(
                f"max_gen_toks must be below length={self._length}, for a context; got max_gen_toks={new}. "
                "Use a larger length, or fewer new tokens."
            )
        ids = [self._tokenizer.encode(context)[-(self._length - new) :] for context in contexts]
        prompts: list[Prompt] = [row if len(row) else self._prefix for row in ids]
        size = self._batch or 16
        chunks = [prompts[at : at + size] for at in range(0, len(prompts), size)]
        common: dict[str, Any] = {"max_new_tokens": new, "stop": stop, "tokenizer": self._tokenizer}
        return [row.text for some in chunks for row in generate(self._model, some, **common, **sampling)]

    def _kept(self, name: str, requests: Sequence[Any], answers: list[Any]) -> list[Any]:
        """The answers, which lm-eval's cache may keep as well."""
        hook: Any = getattr(self, "cache_hook")  # noqa: B009 - lm-eval's class has it
        for request, answer in zip(requests, answers, strict=True):
            hook.add_partial(name, request.args, answer)
        return answers


def _generation_options(options: Mapping[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
    """The number of new tokens, the texts that end them, and what `palm.generate` knows of sampling.

    Raises `ConfigError` for an option that palm does not know.
    """
    unknown = set(options) - {*_NEW, *_SAMPLING, "until", "do_sample"}
    if unknown:
        raise ConfigError(
            f"generation_kwargs must be until, do_sample, {', '.join((*_NEW, *_SAMPLING))}; got "
            f"{', '.join(sorted(unknown))}. Change the task."
        )
    new = next((int(options[name]) for name in _NEW if options.get(name) is not None), _NEW_TOKENS)
    until = options.get("until") or []
    stop = [until] if isinstance(until, str) else [text for text in until if text]
    sampling = {name: options[name] for name in _SAMPLING if options.get(name) is not None}
    if not options.get("do_sample", sampling.get("temperature", 0) > 0):
        sampling = {"temperature": 0.0}
    return new, stop, sampling


def harness_model(
    model: Any, *, length: int = LENGTH, batch: int | None = None, tokenizer: Any = None
) -> Any:
    """A model of either backend as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=…)`.

    `length`, `batch` and `tokenizer` are as in `palm.evaluate`. Raises `MissingFrameworkError` if lm-eval is
    not installed, `ConfigError` for numbers out of range, and `TokenError` if no tokenizer is known.
    """
    kind = type("PalmLM", (HarnessModel, _imported("lm_eval.api.model").LM), {})
    return kind(model, length=length, batch=batch, tokenizer=tokenizer)


def evaluate_tasks(
    model: Any, tasks: Iterable[str], *, include: Path | None = None, **options: Any
) -> dict[str, dict[str, Any]]:
    """The results of lm-eval's tasks, by task and metric. `options` are those of `harness_model`.

    `include` is a folder with tasks of your own. lm-eval may download the data of a task. Raises
    `ConfigError` for a task that lm-eval does not know, and what `harness_model` raises.
    """
    own = harness_model(model, **options)
    manager = _imported("lm_eval.tasks").TaskManager(include_path=None if include is None else str(include))
    wanted = list(tasks)
    if missing := [name for name in wanted if name not in manager.all_tasks]:
        raise ConfigError(
            f"tasks must be known to lm-eval; got {', '.join(missing)}. Use --include FOLDER for your own; "
            "lm-eval ls tasks lists the others."
        )
    with _guest():
        found = _imported("lm_eval").simple_evaluate(model=own, tasks=wanted, task_manager=manager)
    results: dict[str, dict[str, Any]] = found["results"]
    return results


@contextmanager
def _guest() -> Iterator[None]:
    """lm-eval prints on standard error, and resamples in this process.

    It would fork one that has the threads of both frameworks, which may wait for each other for ever.
    """
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingFrameworkError(
            'tasks need lm-eval; it is not installed. Run: pip install "palm-dual[eval]".'
        ) from None
