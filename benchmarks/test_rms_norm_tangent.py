"""What do the norm's derivatives of the second order cost, and several tangents that share a primal?

Where a contender has no way to take K tangents at once, it makes K double-backward calls.
"""

from benchmarks.cases.tangents import DOUBLE_BACKWARD, JVP, jvps_and_gradients, tangents

CASES = (JVP, DOUBLE_BACKWARD, jvps_and_gradients(8), tangents(16, with_dy=True))
SHAPES = ((64, 576), (64, 4096))


def test_rms_norm_tangent(time_case, case, shape, dtype):
    time_case(case, shape, dtype)
