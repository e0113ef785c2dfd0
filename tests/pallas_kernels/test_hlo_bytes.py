"""One walk over a compiled module, for its products and for its bytes."""

from collections import Counter

from pallas_kernels.hlo_bytes import computations, hlo_operations, walk

MODULE = """
%product (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%first (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %copy = f32[8,8]{1,0} copy(%a)
}
%second (b: f32[8,8]) -> f32[8,8] {
  %b = f32[8,8]{1,0} parameter(0)
  ROOT %fusion = f32[8,8]{1,0} fusion(%b), kind=kOutput, calls=%product
}
%body (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %which = s32[] constant(1)
  ROOT %y = f32[8,8]{1,0} conditional(%which, %x, %x), branch_computations={%first, %second}
}
ENTRY %main (m: f32[8,8]) -> f32[8,8] {
  %m = f32[8,8]{1,0} parameter(0)
  %once = f32[8,8]{1,0} fusion(%m), kind=kOutput, calls=%product
  ROOT %loop = f32[8,8]{1,0} while(%once), body=%body, condition=%c, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_products_are_seen_inside_fusions_and_in_every_branch():
    runs = Counter()
    for visit in walk(computations(MODULE)):
        runs[visit.op.name] += visit.times
    assert runs["dot"] == 1 + 3
    assert (runs["copy"], runs["loop"], runs["y"]) == (3, 1, 3)


def test_a_fusion_is_one_operation_and_a_conditional_its_first_branch():
    operations, unknown = hlo_operations(computations(MODULE))
    assert {op.name: (op.times, op.hbm_bytes) for op in operations} == {
        "once": (1, 2 * 4 * 64),
        "copy": (3, 3 * 2 * 4 * 64),
    }
    assert not unknown
