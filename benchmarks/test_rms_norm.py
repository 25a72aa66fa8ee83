"""Is the norm faster than what a model would use without it, alone and with the addition before it?

The baseline of each group is transformers' LlamaRMSNorm in eager mode. For how the contenders compare at one
moment use `benchmarks/cpu.py`: these run one after the other.
"""

from benchmarks.cases.rms_norm import ADD, BACKWARD, BOTH, FORWARD

CASES = (FORWARD, BACKWARD, BOTH, ADD)
SHAPES = ((64, 576), (352, 576), (2048, 4096))


def test_rms_norm(time_contender, case, size, contender):
    time_contender(case, size, contender)
