"""A stream of samples as a torch dataset: each worker of a DataLoader is a shard.

The dataset carries the client, which is an address: in every worker process it connects afresh. Tensors are
made over shared memory without a copy (torch has no read-only tensors: do not write to them); collating a
batch copies, once. A worker holds the places of the samples that it still refers to, and its gate lets the
producer go on as it drops them.

Prints: 64 samples, 2 workers
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import shmdriver

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
except ImportError as error:
    raise SystemExit(f"this example needs torch (pip install torch): {error}") from None

WORKERS = 2
SAMPLES = 64
BATCH = 8
SLOTS = 2 * WORKERS * BATCH  # each worker holds the batch that it collects, and the next one is on its way


class StreamDataset(IterableDataset):  # type: ignore[misc, type-arg, unused-ignore]
    """The samples of a stream, shared among the workers of a DataLoader."""

    def __init__(self, client: shmdriver.Client, stream: str) -> None:
        self.client = client
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        shard = None if worker is None else (worker.id, worker.num_workers)
        warnings.filterwarnings("ignore", message=".*not writable.*")
        with self.client.consumer(self.stream, shard=shard) as samples:
            for message in samples:
                yield torch.from_numpy(message.array)


def feed(client: shmdriver.Client) -> None:
    size = 3 * 64 * 64 * 4
    with client.producer("samples", slots=SLOTS, max_message=size, min_consumers=WORKERS) as out:
        for number in range(SAMPLES):
            with out.claim_array((3, 64, 64), "f4") as sample:
                sample[...] = number  # rendered, decoded or read in place


def main() -> None:
    with shmdriver.embedded() as client:
        loader = DataLoader(
            StreamDataset(client, "samples"),
            batch_size=BATCH,
            num_workers=WORKERS,
            multiprocessing_context="spawn",  # no fork of a process that has threads
        )
        batches = iter(loader)
        feeder = threading.Thread(target=feed, args=(client,))
        feeder.start()
        numbers = sorted(int(sample[0, 0, 0]) for batch in batches for sample in batch)
        feeder.join()
        assert numbers == list(range(SAMPLES))
        print(f"{len(numbers)} samples, {WORKERS} workers")


if __name__ == "__main__":
    main()
