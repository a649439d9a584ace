"""Evaluation (extra `eval`): measures of quality, peers at equal rates, records, BD-rates, plots.

Only packages of that extra are imported inside functions: what needs one that is not installed says so, and the rest
works.
"""
