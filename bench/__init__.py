"""Measurements of tidemill; `python -m bench` runs them all, `python -m bench.throughput` one of them."""
