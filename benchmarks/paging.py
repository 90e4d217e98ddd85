"""Step time of the paged optimizer against torch.optim.AdamW, at 100, 50, 10 and 0 % of the state on the device.

    python benchmarks/paging.py --directory /a/folder/on/the/disk     writes benchmarks/results/paging-<device>.json

Steps alternate (torch, 100 %, 50 %, ..., torch, ...), so that a machine whose speed drifts slows all. First all sides
are proved to compute the same bits. The file's bandwidth is measured with the same kind of reads and writes, on the
same file system, over as many bytes; both go through the system's cache of files, as the pager does, so on a machine
with more memory than state both are the cache's speed, and the record says how much memory there was. What a step may
take by the file alone is (bytes in / read bandwidth + bytes out / write bandwidth); the ratio of the step to the larger
of that and torch's step is what paging costs beyond it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from race import DEVICE, ROOT, bitsandbytes, interleaved

SHARES = (1.0, 0.5, 0.1, 0.0)


def make_parameters(kind: str, count: int) -> list[torch.nn.Parameter]:
    """`count` elements in all. "large": as matrices of 2048 x 2048. "adapters": as LoRA's, rank 8, two to a layer."""
    shapes = [(2048, 2048)] if kind == "large" else [(8, 2048), (2048, 8)]
    each = sum(rows * columns for rows, columns in shapes)
    generator = torch.Generator().manual_seed(0)
    shapes *= max(1, count // each)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
    return parameters


def copy_of(parameters: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """The same values once more, with the same gradients."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    for p, q in zip(copies, parameters, strict=True):
        p.grad = q.grad
    return copies


def race(kind: str, count: int, rounds: int, directory: str, state_bits: int) -> dict:
    from qlora_lab.paging import PagedAdamW

    parameters = make_parameters(kind, count)
    state_bytes = 2 * sum(p.numel() * p.element_size() for p in parameters)
    copies, optimizers = {}, {"torch.optim.AdamW": torch.optim.AdamW(parameters)}
    for share in SHARES:
        name = f"paged, {share:.0%}"
        copies[name] = copy_of(parameters)
        budget = None if share == 1 else int(share * state_bytes)
        optimizers[name] = PagedAdamW(
            copies[name], device_budget=budget, host_budget=0, directory=directory, state_bits=state_bits
        )
    if paged := bitsandbytes_optimizer():
        optimizers["bitsandbytes PagedAdamW32bit"] = paged(copy_of(parameters))
    times = interleaved({name: optimizer.step for name, optimizer in optimizers.items()}, rounds, warmup=3)
    equal = {
        name: all(torch.equal(p, q) for p, q in zip(parameters, copied, strict=True)) for name, copied in copies.items()
    }
    if state_bits == 32:
        assert all(equal.values()), equal
    read, write = bandwidth(directory, min(state_bytes, 2**30))
    reference = times["torch.optim.AdamW"]["median_ms"]
    result = {}
    for name, t in times.items():
        row = {**t, "ratio to torch": round(t["median_ms"] / reference, 3)}
        if name in equal:
            moved = optimizers[name].bytes_moved
            bytes_in, bytes_out = (moved.get(pair, 0) for pair in (("disk", "device"), ("device", "disk")))
            row |= {"bytes in": bytes_in, "bytes out": bytes_out, "same bits as torch": equal[name]}
            row["file alone ms"] = round(1e3 * (bytes_in / read + bytes_out / write), 3)
            row["ratio to file alone or torch"] = round(t["median_ms"] / max(reference, row["file alone ms"]), 3)
            row["page bytes"] = optimizers[name].page_size
            optimizers[name].close()
        result[name] = row
    speeds = {"read bytes per second": round(read), "write bytes per second": round(write)}
    return {
        "tensors": len(parameters),
        "state bytes in 32 bits": state_bytes,
        "file, through the system's cache": speeds,
        "sides": result,
    }


def bitsandbytes_optimizer():
    """Its paged AdamW, on a GPU where it works; on a CPU it is an ordinary one and would race against nothing new.

    Nothing caps the memory here, and the state is far smaller than the card: its managed memory is under no pressure
    either.
    """
    if DEVICE.type != "cuda" or bitsandbytes()[0] is None:
        return None
    from bitsandbytes.optim import PagedAdamW32bit

    return PagedAdamW32bit


def bandwidth(directory: str, count: int, block: int = 2**20, rounds: int = 3) -> tuple[float, float]:
    """Bytes per second of plain reads and writes of `block` bytes over an existing file; the median of `rounds`."""
    content, reads, writes = bytearray(os.urandom(block)), [], []
    blocks = max(1, count // block)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for round_ in range(rounds + 1):
            for times, work in ((writes, file.write), (reads, file.readinto)):
                file.seek(0)
                start = time.perf_counter()
                for _ in range(blocks):
                    work(content)
                if round_:  # the first one makes the file
                    times.append(time.perf_counter() - start)
    return tuple(blocks * block / statistics.median(times) for times in (reads, writes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="folder on the disk that takes the pages")
    parser.add_argument("--elements", type=int, default=2**26, help="parameters in all; 8 bytes of state each")
    parser.add_argument("--rounds", type=int, default=11, help="counted steps of each side")
    parser.add_argument("--state-bits", type=int, default=32, choices=(8, 32))
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    from qlora_lab.machine.environment import describe, versions
    from qlora_lab.machine.files import write_json

    record = {"date": date.today().isoformat(), "machine": describe(), "versions": versions(), "races": {}}
    for kind in ("large", "adapters"):
        result = race(kind, args.elements, args.rounds, args.directory, args.state_bits)
        record["races"][kind] = result
        print(json.dumps({kind: result}, indent=2), flush=True)
    out = args.out or ROOT / "benchmarks" / "results" / f"paging-{DEVICE.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    print(f"written to {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
