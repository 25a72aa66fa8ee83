"""What a build's PTX and ptxas' log say of it."""

import re


def parse_ptxas(log: str) -> dict[str, int]:
    """Registers, stack frame and spill bytes from what `ptxas -v` says.

    Raises:
        ValueError: the log doesn't hold the numbers, so nothing can be said about the kernel.
    """
    sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if not (sizes and registers):
        raise ValueError(f"ptxas said nothing about registers and spills: {log!r}")
    values = map(int, (registers[1], *sizes.groups()))
    return dict(zip(("registers", "stack", "spill_stores", "spill_loads"), values, strict=True))


def accesses(ptx: str, instruction: str) -> list[tuple[int, int]]:
    """(pointer argument, bits) of every global `ld` or `st`, pointers counted in the kernel's order.

    An asynchronous copy to shared memory is a load.

    Raises:
        ValueError: an address comes from no pointer argument or from several, or there are asynchronous
            copies in bulk, which aren't counted.
    """
    if "cp.async.bulk" in ptx:
        raise ValueError("asynchronous copies in bulk are not counted")
    pointers = re.findall(r"\.param \.u64 \.ptr \S+ \.align \d+ (\w+)", ptx)
    sources: dict[str, set[str]] = {}
    # what is loaded from global memory is data: an address made with it is not one of it
    for name, operands in re.findall(r"^\s*(?:@!?%p\d+\s+)?(?!ld\.global)\S+\s+(%rd\d+),(.*);", ptx, re.M):
        sources.setdefault(name, set()).update(re.findall(r"%rd\d+|\w+_param_\d+", operands))

    def origins(name: str) -> set[int]:
        roots, seen, left = set(), set(), [name]
        while left:
            name = left.pop()
            if name in pointers:
                roots.add(pointers.index(name))
            elif name not in seen:
                seen.add(name)
                left += sources.get(name, ())
        return roots

    pattern = rf"\b{instruction}\.global\S*?(?:\.v(\d))?\.[a-z]+(\d+)\s[^;\[]*\[ *(%rd\d+)"
    widths = [(address, int(vector or 1) * int(bits)) for vector, bits, address in re.findall(pattern, ptx)]
    if instruction == "ld":
        copies = r"\bcp\.async\.c[ag]\.shared\.global\S*\s+\[[^\]]*\], *\[ *(%rd\d+)[^\]]*\], *(\w+)"
        widths += [(address, 8 * int(size, 0)) for address, size in re.findall(copies, ptx)]
    traced = []
    for address, bits in widths:
        argument = origins(address)
        if len(argument) != 1:
            raise ValueError(f"address {address} is made from {len(argument)} pointer arguments")
        traced.append((argument.pop(), bits))
    return traced
