"""The benchmarks behind ``shmdriver bench``.

``native`` compiles the C programs in ``programs/`` against the installed library; ``scenarios`` is the work
of the Python processes, over a ``channel``; ``cases`` says what each command measures; ``runner`` repeats
it in rounds between two looks at the floor; ``report`` is the JSON, ``tables``, ``plots`` and ``compare``
show it. The peers that `make bench` compares with stand in the source checkout, in ``benchmarks/peers``.
"""
