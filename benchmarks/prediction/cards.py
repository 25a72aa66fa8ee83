"""Cards as their data sheets have them."""

from dataclasses import dataclass

REGISTERS = 65536  # of a multiprocessor, on every card since 2014
BLOCKS = 32  # that a multiprocessor holds at most; 24 on consumer cards


@dataclass(frozen=True)
class Card:
    """What limits a kernel.

    Args:
        name: As it is sold.
        bandwidth: Of its memory, bytes a second.
        cache_rate: Of its L2 cache, bytes a second.
        cache: Bytes of the L2 cache.
        multiprocessors: How many.
        clock: Boost, Hz.
        float64: Operations in float64 that a multiprocessor begins in a clock.
        threads: That a multiprocessor holds.
        shared: Bytes of shared memory that a block can have; a multiprocessor has 1 KiB more.
        cluster: Blocks that the kernels' clusters have at most.
        cuda: Whose machine code of the CUDA kernels it runs.
        triton: The column of tools/aot.md that is nearest to it.
    """

    name: str
    bandwidth: float
    cache_rate: float
    cache: float
    multiprocessors: int
    clock: float
    float64: int
    threads: int
    shared: int
    cluster: int
    cuda: str
    triton: str


# Sources. Bandwidths: NVIDIA's data sheets (A100 80GB SXM4, H100 SXM5, H200 SXM, HGX B200) and the Ada
# whitepaper (RTX 4090). Multiprocessors, clocks, sizes of L2: the architectures' whitepapers; B200's clock
# from its float32 rate (75 Tflop/s = 2 x 128 x 148 x 1.97 GHz). Shared memory, threads, float64: the tables
# of compute capabilities and of arithmetic throughput in the CUDA programming guide. L2's rate: 5120 bytes a
# clock for A100 (whitepaper); for the others none is published, and A100's is taken, twice for two dies.
CARDS = (
    Card("H100", 3.35e12, 5120 * 1.98e9, 50e6, 132, 1.98e9, 64, 2048, 227 * 1024, 8, "90a", "90"),
    Card("H200", 4.8e12, 5120 * 1.98e9, 50e6, 132, 1.98e9, 64, 2048, 227 * 1024, 8, "90a", "90"),
    Card("A100", 2.039e12, 5120 * 1.41e9, 40e6, 108, 1.41e9, 32, 2048, 163 * 1024, 1, "80", "80"),
    Card("RTX 4090", 1.008e12, 5120 * 2.52e9, 72e6, 128, 2.52e9, 2, 1536, 99 * 1024, 1, "80", "80"),
    Card("B200", 8e12, 2 * 5120 * 1.97e9, 126e6, 148, 1.97e9, 64, 2048, 227 * 1024, 8, "100", "100"),
)
