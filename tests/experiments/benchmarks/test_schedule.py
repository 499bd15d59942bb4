"""Bundles are counted as often as the loops around them turn."""

import pytest

from experiments.benchmarks.schedule import cycles_of

# One bundle before a pipelined loop of 6 turns, 2 of which fill and drain it; in it 2 bundles and
# a loop of 3 bundles, of which one is marked less deep, that counts to 64 by 4; one bundle behind.
TEXT = """= control target key start
LH: loop header
     0   :  { %s1_s0 = inlined_call_operand.hbm [shape: bf16[8,8]] }
   0x1 LB: > { %s2_s1 = sadd.s32 1, %s9_s9 /* iteration index, stage = 1 */ }
   0x2 LB: >> { %s3_s2 = sadd.s32 4, %s8_s8  ;;  %v1_v0 = vld [vmem:[#allocation1] sm:$0xff] }
   0x3   : > { %s4_s3 = sshll.u32 (%p1_p0), 1, 2  ;;  %v2_v1 = vadd.s32 1, %v1_v0 }
   0x4   : >> { %p1_p0 = scmp.ge.s32.totalorder %s3_s2, 64 /* loop exit test */ }
   0x5   : > { %p2_p1 = scmp.ge.s32.totalorder %s2_s1, 6 /* loop exit test */ }
   0x6   :  {} /* End region 2 */
"""


def test_nested_loops_are_multiplied():
    assert cycles_of(TEXT) == 2 + 4 * (2 + 16 * 3)


def test_a_test_under_the_exit_of_an_inner_loop_is_the_outer_one_s():
    moved = TEXT.replace(
        "/* loop exit test */ }\n   0x5   : > { %p2_p1 =", "/* loop exit test */  ;;  %p2_p1 =", 1
    )
    moved = moved.replace("totalorder %s2_s1", "totalorder (%p1_p0), %s2_s1")
    assert "0x5" not in moved
    assert cycles_of(moved) == 2 + 4 * (1 + 16 * 3)


def test_loops_without_a_test_are_refused():
    with pytest.raises(ValueError, match="loop at bundle 1 has no exit test"):
        cycles_of(
            TEXT.replace("%p2_p1 = scmp.ge.s32.totalorder %s2_s1, 6 /* loop exit test */", "")
        )
