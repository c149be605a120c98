"""A window of the last 8 frames of a camera feeds a model; the frames are never copied.

``message.array`` is a view of shared memory that holds its place in the ring for as long as anything
refers to it. A deque of them is therefore safe: the camera cannot overwrite what is in the window. It
needs room for the window and a few more frames (``slots=16``); a window that filled the ring would be
told so by ViewsHeld.

Prints: 93 windows, none torn
"""

import multiprocessing
from collections import deque
from typing import Any

import numpy as np

import shmdriver

FRAMES, WINDOW = 100, 8
SHAPE = (270, 480, 3)

Frame = np.ndarray[Any, np.dtype[Any]]


def camera(client: shmdriver.Client) -> None:
    """Frame n is filled with n."""
    with client.producer("camera", slots=16, max_message=int(np.prod(SHAPE)), min_consumers=1) as out:
        for n in range(FRAMES):
            with out.claim_array(SHAPE, "u1") as frame:
                frame[:] = n
    client.close()


def model(window: deque[Frame]) -> Frame:
    """Something that looks at all of the window: the mean of each frame."""
    return np.array([frame.mean() for frame in window])


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with shmdriver.embedded() as client, client.consumer("camera") as frames:
        source = context.Process(target=camera, args=(client,))
        source.start()
        window: deque[Frame] = deque(maxlen=WINDOW)
        windows = torn = 0
        for message in frames:
            window.append(message.array)
            if len(window) == WINDOW:
                windows += 1
                expected = np.arange(message.seq - WINDOW + 1, message.seq + 1)
                torn += not np.array_equal(model(window), expected)
        source.join()
    print(f"{windows} windows, {torn or 'none'} torn")


if __name__ == "__main__":
    main()
