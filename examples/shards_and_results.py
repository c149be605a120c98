"""Four workers share one stream of tasks by shards, and answer through a queue.

A stream has any number of consumers, and each may take only its part: ``shard=(k, n)`` delivers the
messages with ``seq % n == k``. Nothing is handed out twice, nobody waits for a lock, and a worker that is
slow holds the producer back only when the ring is full at its own next task. The results come from many
processes to one: a queue.

Prints: 4 workers, 10000 results, sum of squares 333283335000
"""

from __future__ import annotations

import multiprocessing

import numpy as np

import shmdriver

WORKERS = 4
TASK = np.dtype([("number", "<i8")])


def work(client: shmdriver.Client, k: int) -> None:
    """Reads its shard in batches, views in place, and puts one result a batch."""
    results = client.queue("results")
    with client.consumer("tasks", shard=(k, WORKERS)) as tasks:
        for batch in tasks.batches():
            results.put((k, len(batch), int((batch["number"] ** 2).sum())))
    results.put((k, 0, None))  # this worker is done
    results.close()


def main() -> None:
    context = multiprocessing.get_context("spawn")  # no fork of a process that has threads
    with shmdriver.embedded() as client:
        results = client.queue("results")  # first here: holds what is put from now on
        workers = [context.Process(target=work, args=(client, k)) for k in range(WORKERS)]
        for worker in workers:
            worker.start()
        # No room before all four are attached: a task that went by before would be nobody's.
        with client.producer("tasks", dtype=TASK, slots=1024, min_consumers=WORKERS) as tasks:
            tasks.publish(np.arange(10_000).astype(TASK))
        count = total = 0
        running = WORKERS
        while running:
            _, n, part = results.get()
            if part is None:
                running -= 1
            else:
                count += n
                total += part
        for worker in workers:
            worker.join()
        print(f"{WORKERS} workers, {count} results, sum of squares {total}")


if __name__ == "__main__":
    main()
