"""
Batches of cells on their way to a GPU: what sending costs, what of it hides behind computing, who waits.

``python -m tests.benchmarks.device STORE [BATCH_SIZE [STEPS]]`` (a store or file of cells, sparse). Without
CUDA the same code runs on the processor, and says that its times mean nothing.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

import xloader as xl
from xloader import torch as xt

UNITS = {"cuda": 512, "cpu": 4}
REPEATS = {"cuda": 20, "cpu": 1}


def ahead(batches: Iterable[Any], device: torch.device, *, dense: bool = True) -> Iterator[Any]:
    """Yield batches on the device; each is sent on a stream of its own while the one before is used."""
    if device.type != "cuda":
        for batch in batches:
            yield xt.to_device(batch, device, dense=dense)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = xt.to_device(batch, device, dense=dense)
            there = stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = sent, there
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Any, there: Any) -> Any:
    current = torch.cuda.current_stream()
    current.wait_event(there)
    for value in batch.values():
        if isinstance(value, torch.Tensor) and value.is_cuda and value.layout == torch.strided:
            value.record_stream(current)  # its memory is not used again before this is done
    return batch


def settled(device: torch.device) -> float:
    """Return the time when everything that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(
    batches: Iterable[Any], use: Callable[[Any], Any], device: torch.device
) -> tuple[float, float]:
    """Return the seconds of a pass, and the share of them in which the loop waited for batches."""
    begin, waited = settled(device), 0.0
    left = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(left, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        use(batch)
    total = settled(device) - begin
    return total, waited / total


def main(args: list[str]) -> None:
    """Print one line for each way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        print("no CUDA here: the same code on the processor, whose times say nothing about a GPU")
    size, steps = (int(a) for a in (*args[1:], *("4096", "50")[len(args) - 1 :]))
    loader = xl.Loader(xl.open_cells(args[0]), batch_size=size, variables=["X"], shuffle=True)
    steps = min(steps, len(loader))
    kept = [xt.to_tensors(b, loader, layout="csr") for b in loader.batches(0, range(steps))]
    pinned = [b.pin_memory() for b in kept] if device.type == "cuda" else kept
    weight = torch.randn(kept[0]["X"].shape[1], UNITS[device.type], device=device)
    one = xt.to_device(kept[0], device)["X"].float()

    def compute(x: torch.Tensor) -> None:
        for _ in range(REPEATS[device.type]):
            torch.relu(x.float() @ weight).sum()

    sending, _ = timed(pinned, lambda b: xt.to_device(b, device), device)
    computing, _ = timed(range(steps), lambda _: compute(one), device)
    print(f"{steps} batches of {size} cells: sending {sending:.3f} s, computing {computing:.3f} s")
    ways = {
        "dense from the host": (xt.to_device({"X": b["X"].to_dense()}, device) for b in kept),
        "CSR, not page-locked": (xt.to_device(b, device) for b in kept),
        "CSR, page-locked": (xt.to_device(b, device) for b in pinned),
        "CSR, page-locked, on a stream of its own": ahead(pinned, device),
    }
    for name, batches in ways.items():
        both, _ = timed(batches, lambda b: compute(b["X"]), device)
        hidden = (sending + computing - both) / min(sending, computing)
        print(f"{name}: {both:.3f} s, {max(0.0, hidden):.0%} of the shorter one hidden")
    served = xt.make_loader(loader, layout="csr", num_workers=0)
    total, share = timed(ahead(served, device), lambda b: compute(b["X"]), device)
    print(
        f"from storage: {len(loader) * size / total:,.0f} cells/s, {share:.1%} of it waiting for batches"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
