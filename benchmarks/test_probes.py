"""What do probes cost that are functions of a seed, against PyTorch's random numbers?"""

from benchmarks.cases.probes import dots_case, probes_case, rademacher_case

CASES = (rademacher_case(8), probes_case(8), dots_case(8))
SHAPES = ((8, 576), (64, 4096))


def test_probes(time_case, case, shape, dtype):
    time_case(case, shape, dtype)
