"""A thousand mutated bundles of either kind: only palm's own errors, never a crash, never a false "agree"."""

import random
import shutil
from collections import Counter

import pytest
from mutations import MUTATIONS, mutate


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_thousand_mutated_bundles_are_refused_or_differ(is_complete, tmp_path):
    rng = random.Random(is_complete)
    kinds = list(MUTATIONS)
    became = Counter()
    for trial in range(1000):
        kind = kinds[trial % len(kinds)]
        became[mutate(tmp_path / "bundle", kind, is_complete, rng)] += 1
        shutil.rmtree(tmp_path / "bundle")
    print(f"\n{'complete' if is_complete else 'excerpt'}: {dict(became)}")
    assert sum(became.values()) == 1000
    assert len(became) >= 2, "some are refused, some are read and differ"
