"""A step of RL on meshes of eight devices is that on one: metrics, gradients, scores; packed, with recorded experts."""

import pytest

from tests.helpers.programs import output_of


@pytest.mark.slow
@pytest.mark.parametrize(("what", "comparisons"), [("every_objective", 7), ("every_mesh", 11), ("every_family", 2)])
def test_a_mesh_gives_the_step_of_one_device(what, comparisons):
    assert len(output_of("tests.helpers.rl_on_eight", what).splitlines()) == comparisons
