import pytest

from tests.helpers.programs import needs_libtpu, output_of


@pytest.mark.slow
@needs_libtpu
def test_the_programs_compile_for_tpus_and_update_the_pool_in_place():
    lines = output_of("tests.helpers.engine_on_tpus").splitlines()
    assert len(lines) == 9
    for line in lines:
        assert float(line.split()[-1]) >= 1, line
