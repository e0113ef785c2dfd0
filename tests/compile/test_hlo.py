"""What is read from the text of a compiled program: loops, products, collectives and their mesh axes."""

import pytest

from ling_jax.compile.hlo import Collective, read_work

MESH = {"data": 1, "fsdp": 4, "expert": 2, "context": 1, "tensor": 1}

PROGRAM = """HloModule step, is_scheduled=true

%fused (p0: bf16[16,32], p1: bf16[32,64]) -> bf16[16,64] {
  %p0 = bf16[16,32]{1,0} parameter(0)
  %p1 = bf16[32,64]{1,0} parameter(1)
  ROOT %product = bf16[16,64]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[16,32], bf16[8,64])) -> (s32[], bf16[16,32], bf16[8,64]) {
  %state = (s32[], bf16[16,32]{1,0}, bf16[8,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[16,32]{1,0} get-tuple-element(%state), index=1
  %w = bf16[8,64]{1,0} get-tuple-element(%state), index=2
  %whole = bf16[32,64]{1,0} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %y = bf16[16,64]{1,0} fusion(%x, %whole), kind=kOutput, calls=%fused
  ROOT %next = (s32[], bf16[16,32]{1,0}, bf16[8,64]{1,0}) tuple(%i, %x, %w)
}

%condition (state: (s32[], bf16[16,32], bf16[8,64])) -> pred[] {
  %state = (s32[], bf16[16,32]{1,0}, bf16[8,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %bound = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (a: (s32[], bf16[16,32], bf16[8,64]), b: f32[64,8], c: f32[8,64]) -> f32[64,64] {
  %a = (s32[], bf16[16,32]{1,0}, bf16[8,64]{1,0}) parameter(0)
  %b = f32[64,8]{1,0} parameter(1)
  %c = f32[8,64]{1,0} parameter(2)
  %loop = (s32[], bf16[16,32]{1,0}, bf16[8,64]{1,0}) while(%a), condition=%condition, body=%body
  %wide = f32[64,64]{1,0} convolution(%b, %c), dim_labels=bf_io->bf, operand_precision={highest,highest}
  ROOT %sum = f32[64,64]{1,0} all-reduce(%wide), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}
"""


def test_operations_in_a_loop_count_once_per_trip():
    work = read_work(PROGRAM, MESH)
    inside, outside = 2 * 16 * 32 * 64, 2 * 64 * 8 * 64
    assert work.flops == 5 * inside + outside
    assert work.matrix_unit_flops == 5 * inside + 6 * outside  # a float32 product is six passes
    assert work.open_loops == ()


def test_collectives_have_their_mesh_axes_and_what_a_device_receives():
    assert read_work(PROGRAM, MESH).collectives == (
        Collective("all-reduce", ("expert",), 1, 2 * 64 * 64 * 4 // 2),
        Collective("all-gather", ("fsdp",), 5, 5 * 3 * 8 * 64 * 2),
    )


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", ("fsdp",), 4),
        ("[2,4]<=[4,2]T(1,0)", ("fsdp",), 4),
        ("[4,2]<=[8]", ("expert",), 2),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}", ("fsdp",), 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", ("expert",), 2),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", ("fsdp",), 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", ("fsdp", "expert"), 8),
        ("{}", ("fsdp", "expert"), 8),
    ],
)
def test_every_notation_of_device_groups_is_parsed(groups, axes, size):
    """A group that is not understood must not count as all devices."""
    text = PROGRAM.replace("[2,4]<=[4,2]T(1,0)", groups)
    found = {row.kind: row for row in read_work(text, MESH).collectives}["all-gather"]
    assert (found.axes, found.bytes) == (axes, 5 * (size - 1) * 8 * 64 * 2)


def test_an_unknown_notation_of_device_groups_is_an_error():
    with pytest.raises(ValueError, match="in a form that is not known here: replica_groups=@groups"):
        read_work(PROGRAM.replace("[2,4]<=[4,2]T(1,0)", "@groups"), MESH)


def test_an_all_reduce_followed_by_a_slice_is_a_reduce_scatter():
    whole = "ROOT %sum = f32[64,64]{1,0} all-reduce(%wide), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add"
    assert whole in PROGRAM
    part = "  ROOT %part = f32[32,64]{1,0} dynamic-slice(%sum, %a), dynamic_slice_sizes={32,64}"
    text = PROGRAM.replace(whole, whole.removeprefix("ROOT ") + "\n" + part)
    assert Collective("reduce-scatter", ("expert",), 1, 64 * 64 * 4 // 2) in read_work(text, MESH).collectives


WHOLE = "{shape} ragged-all-to-all{part}(%a, %b, %c, %c, %c, /*index=5*/%c), replica_groups=[4,2]<=[8]"
FORMS = {
    "at once": ["%x = " + WHOLE.format(shape="bf16[40,2,64]", part="")],
    "in two parts": [
        "%x = " + WHOLE.format(shape="((bf16[15,2,64], bf16[40,2,64]), bf16[40,2,64], u32[])", part="-start"),
        "%moved = bf16[40,2,64] ragged-all-to-all-done(%x)",
    ],
    "on another core": [
        "%x = ((bf16[15,2,64], bf16[40,2,64]), bf16[40,2,64]) call-start(%a, %b, %c), to_apply=%other",
        "%moved = bf16[40,2,64] call-done(%x)",
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_ragged_exchange_counts_the_smaller_buffer(form):
    """Of the rows to be sent 15 and of those that may come 40, twice 64 numbers each: half of the 15 cross a link."""
    given = ["%a = bf16[15,2,64] parameter(0)", "%b = bf16[40,2,64] parameter(1)", "%c = s32[2] parameter(2)"]
    arguments = "(a: bf16[15,2,64], b: bf16[40,2,64], c: s32[2]) -> bf16[40,2,64] {"
    other = [f"%other {arguments}", *given, "ROOT " + FORMS["at once"][0], "}"]
    work = read_work("\n".join([*other, f"ENTRY %main {arguments}", *given, *FORMS[form], "}"]), MESH)
    assert work.collectives == (Collective("ragged-all-to-all", ("expert",), 1, 15 * 2 * 64 * 2 // 2),)
    assert work.hbm_bytes == 2 * 15 * 2 * 64 * 2  # read here, and written there


def test_a_loop_that_depends_on_data_counts_once_and_is_named():
    work = read_work(
        PROGRAM.replace("%bound = s32[] constant(5)", "%bound = s32[] get-tuple-element(%state), index=0"), MESH
    )
    assert work.open_loops == ("loop",)
    assert work.flops == 2 * 16 * 32 * 64 + 2 * 64 * 8 * 64


# As a TPU's compiler writes products of several dimensions: windows that meet one place, or all, of an operand.
@pytest.mark.parametrize(
    ("window", "labels", "left", "right", "result", "flops"),
    [
        ("size=4 stride=3 lhs_dilate=4", "0bf_0io->0bf", (4, 8, 16), (4, 16, 32), (4, 8, 32), 2 * 4 * 8 * 16 * 32),
        ("size=32", "b0f_o0i->bf0", (8, 32, 16), (4, 32, 16), (8, 4, 1), 2 * 8 * 32 * 16 * 4),
        ("size=32 pad=31_31 rhs_reversal=1", "bf0_i0o->b0f", (8, 16, 1), (16, 32, 4), (8, 32, 4), 2 * 8 * 16 * 32 * 4),
    ],
    ids=["batched", "two contracted", "two kept"],
)
def test_windows_of_products_count_no_padding(window, labels, left, right, result, flops):
    left, right, result = (",".join(map(str, shape)) for shape in (left, right, result))
    text = (
        f"ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[{result}] {{\n"
        f"  %a = f32[{left}]{{2,1,0}} parameter(0)\n  %b = f32[{right}]{{2,1,0}} parameter(1)\n"
        f"  ROOT %c = f32[{result}]{{2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    assert read_work(text, MESH).flops == flops
