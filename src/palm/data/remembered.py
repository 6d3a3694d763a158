"""Which tokenizer belongs to a model: remembered here, outside of it, and forgotten with it.

Neither wing's model has a place for a tokenizer: a state dict, a pytree and a config hold numbers and sizes.
A static field of an `eqx.Module` would change the structure of the tree, so that a loaded and a fresh model
could no longer be mapped over together. What is found by the config, or by the structure, may belong to
another model of the same sizes, once a compiled function has made it. So the model itself is the key:

- What changes a model in place keeps its tokenizer (torch's optimisers, `load_state_dict`, `to`), and
  `palm.convert`, `palm.load` and `palm.train` hand it on.
- What makes another model forgets it: `copy.deepcopy`, `eqx.tree_at`, `eqx.apply_updates`. `palm.generate`
  then refuses text, instead of reading it as bytes, unless the vocabulary is that of bytes. Keep it with
  `tokenizer = palm.tokenizer_of(model)` and pass `tokenizer=`.
"""

from __future__ import annotations

import weakref
from typing import Any

from palm.data.tokenizer import Tokenizer, default_tokenizer

# By identity: an `eqx.Module` compares its arrays, and cannot be hashed.
_known: dict[int, tuple[weakref.ref[Any], Tokenizer]] = {}


def remember_tokenizer(model: Any, tokenizer: Tokenizer | None) -> None:
    """From now on `tokenizer` is the one of `model`; None: it has none that is known."""
    key = id(model)
    if tokenizer is None:
        _known.pop(key, None)
    else:
        _known[key] = weakref.ref(model, lambda _: _known.pop(key, None)), tokenizer


def remembered_tokenizer(model: Any, num_tokens: int) -> Tokenizer | None:
    """The tokenizer of `model`; bytes if none is known and its vocabulary is that of bytes; or None."""
    owner, tokenizer = _known.get(id(model), (None, None))
    is_known = owner is not None and owner() is model
    return tokenizer if is_known else default_tokenizer(num_tokens)
