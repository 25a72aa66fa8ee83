"""What does the step ratio of a model's states cost, with its gradient?"""

from benchmarks.cases.probes import steps_case

CASES = (steps_case(31),)
SHAPES = ((8, 576), (64, 4096))


def test_step_ratio(time_case, case, shape, dtype):
    time_case(case, shape, dtype)
