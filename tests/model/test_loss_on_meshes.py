"""Log-probabilities on a mesh are those of one device, and no device needs the whole head for them."""

import pytest

from tests.helpers.programs import output_of


@pytest.mark.slow
def test_every_mesh_gives_the_log_probabilities_and_gradients_of_the_plain_form():
    assert len(output_of("tests.helpers.losses_on_eight", "equal").splitlines()) == 36


def test_no_device_holds_the_whole_head_where_the_mesh_splits_the_vocabulary():
    assert len(output_of("tests.helpers.losses_on_eight", "compiled").splitlines()) == 3
