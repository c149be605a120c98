"""A camera, three workers, one list of results: frames are shared out without a copy.

The camera writes each frame in place. ``shard=(k, 3)`` gives worker k every third frame, as a read-only
array in shared memory; the gates of all three hold the camera back when they are slow, so no frame is
lost. What they find goes into a queue with the face of ``multiprocessing.Queue``.

Prints: 60 frames, 20 each
"""

import multiprocessing
from collections import Counter

import numpy as np

import shmdriver

FRAMES, WORKERS = 60, 3
SHAPE = (480, 640, 3)


def work(client: shmdriver.Client, k: int) -> None:
    """Finds the bright spot of every frame that is this worker's."""
    results = client.queue("spots")
    with client.consumer("camera", shard=(k, WORKERS)) as frames:
        for message in frames:
            spot = int(message.array[:, :, 0].argmax())
            results.put((k, message.seq, divmod(spot, SHAPE[1])))
    results.close()
    client.close()


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with shmdriver.embedded() as client:
        results = client.queue("spots")
        workers = [context.Process(target=work, args=(client, k)) for k in range(WORKERS)]
        for worker in workers:
            worker.start()
        nbytes = int(np.prod(SHAPE))
        with client.producer("camera", slots=16, max_message=nbytes, min_consumers=WORKERS) as camera:
            for n in range(FRAMES):
                with camera.claim_array(SHAPE, "u1") as frame:  # the sensor would write here
                    frame[:] = 0
                    frame[n, 2 * n] = 255
        found = [results.get() for _ in range(FRAMES)]
        for worker in workers:
            worker.join()
    assert all(spot == (seq, 2 * seq) for _, seq, spot in found)
    assert sorted(seq for _, seq, _ in found) == list(range(FRAMES))
    share = Counter(k for k, _, _ in found)
    print(f"{FRAMES} frames, {share[0]} each" if len(set(share.values())) == 1 else share)


if __name__ == "__main__":
    main()
