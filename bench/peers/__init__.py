"""W1 and its kin as one would write them for other stream engines; each program runs in its peer's own environment.

They import nothing of tidemill: `make bench-peers` makes one environment per peer from the ``.txt`` beside this file,
and `python -m bench streams` starts the programs there, gives each the same input and compares what comes out.
"""
