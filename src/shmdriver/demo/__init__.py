"""``shmdriver demo``: real data between processes, and what survives kill -9.

One small module a part: files (1), quotes and round trips (2), frames (3), survive (4). Every part
checks what arrived, in the processes that received it; the demo fails when anything is lost.
"""
