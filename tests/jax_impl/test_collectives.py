"""What is read from the text of compiled programs, and from what the compiler says of those it refuses."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from palm.jax_impl.collectives import collectives
from palm.jax_impl.compiled import _needed

# As the TPU's compiler writes it, shortened: a loop of seven, with a fusion in it.
TEXT = """\
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.3 (input: f32[8,4]) -> f32[2,4] {
  %input = f32[8,4]{1,0} parameter(0)
  %all-reduce.9 = f32[8,4]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[2,4]{1,0} dynamic-slice(%all-reduce.9, %at)
}

%body.1 (state: (bf16[16,4], s32[])) -> (bf16[16,4], s32[]) {
  %all-gather.1 = bf16[16,4]{1,0} all-gather(%x), replica_groups=[2,8]<=[16], dimensions={0}
  %fusion = f32[2,4]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3, metadata={op_name="a"}
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one), metadata={op_name="b"}
  ROOT %tuple = (bf16[16,4], /*index=1*/s32[]) tuple(%all-gather.1, /*index=1*/%next)
}

%compared (i: s32[], limit: s32[]) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(7)
  ROOT %compare.1 = pred[] compare(%i, %limit.1), direction=LT
}

%condition.1 (state: (bf16[16,4], s32[])) -> pred[] {
  %i = s32[]{:T(128)} get-tuple-element(%state), index=1
  ROOT %fusion.2 = pred[] fusion(%i, %c), kind=kLoop, calls=%compared
}

ENTRY %main (p: bf16[2,4]) -> bf16[16,4] {
  %while.1 = (bf16[16,4]{1,0}, s32[]) while(%start), condition=%condition.1, body=%body.1
  %all-reduce.1 = (f32[4]{0}, bf16[6]{0}) all-reduce(%a), replica_groups=mesh['data'=2,'model'=3] {'model'}
  %permute = (bf16[5]{0}, bf16[5]{0}, u32[], u32[]) collective-permute-start(%c), source_target_pairs={{0,1}}
  %done = bf16[5]{0} collective-permute-done(%permute)
  %gather = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%d), replica_groups={{0,1,2,3}}
  %scatter = bf16[2,4]{1,0} reduce-scatter(%e), replica_groups={{0,1,2,3}}
  ROOT %all = bf16[9]{0} all-to-all(%f), replica_groups={{0,1,2}}
}
"""


def test_each_kind_counts_as_often_as_its_loop_runs():
    assert collectives(TEXT) == {
        "all-gather": {"count": 7 + 1, "bytes": 7 * 2 * 64 * 7 // 8 + 2 * 32 * 3 // 4},
        "reduce-scatter": {"count": 7 + 1, "bytes": 7 * 4 * 32 * 3 // 4 + 2 * 8 * 3},
        "all-reduce": {"count": 1, "bytes": 2 * (16 + 12) * 2 // 3},
        "collective-permute": {"count": 1, "bytes": 10},
        "all-to-all": {"count": 1, "bytes": 12},
    }


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("constant(7)", "constant(8)", "all-gather"),
        ("constant(1)", "constant(2)", "all-gather"),
        ("calls=%all-reduce-scatter.3", "calls=%something-else", "reduce-scatter"),
        ("[2,8]<=[16]", "[4,4]<=[16]", "all-gather"),
        ("{'model'}", "{'data','model'}", "all-reduce"),
    ],
)
def test_another_text_has_other_collectives(old, new, kind):
    assert old in TEXT
    assert collectives(TEXT.replace(old, new))[kind] != collectives(TEXT)[kind]


def test_a_loop_that_counts_by_two_runs_half_as_often():
    by_two = collectives(TEXT.replace("constant(1)", "constant(2)").replace("constant(7)", "constant(14)"))
    assert by_two == collectives(TEXT)
    unseen = TEXT.replace("add(%i, %one)", "fusion(%i), kind=kLoop")  # then it is taken for one
    assert collectives(unseen) == collectives(TEXT)


def test_a_program_of_one_device_has_none():
    assert collectives("ENTRY %main (p: f32[2]) -> f32[2] {\n  ROOT %p = f32[2] parameter(0)\n}\n") == {}


def test_what_a_program_that_is_too_large_needs_is_read_from_what_the_compiler_says():
    four = AbstractMesh((4,), ("data",))
    given = (
        jax.ShapeDtypeStruct((8, 3), np.float32, sharding=NamedSharding(four, PartitionSpec("data"))),
        [jax.ShapeDtypeStruct((5,), np.int8, sharding=NamedSharding(four, PartitionSpec()))],
    )
    of_all = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.5G of 30.75G hbm. Exceeded"
    of_rest = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(47.25G) exceeds available HBM (30.75G)."
    )
    assert _needed(of_all, given) == 40.5 * 2**30
    assert _needed(of_rest, given) == 47.25 * 2**30 + 2 * 3 * 4 + 5
    assert _needed("UNIMPLEMENTED: Encountered AllReduce fusion", given) is None
