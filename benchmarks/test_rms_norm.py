"""Is the norm faster than what a model would use without it, alone and with the addition before it?

The baseline of each table is transformers' LlamaRMSNorm in eager mode.
"""

from benchmarks.cases.rms_norm import ADD, BOTH, FORWARD

CASES = (FORWARD, BOTH, ADD)
SHAPES = ((64, 576), (512, 4096))


def test_rms_norm(time_case, case, shape, dtype):
    time_case(case, shape, dtype)
