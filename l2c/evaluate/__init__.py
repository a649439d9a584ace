"""Evaluation (extra `eval`): measures of quality, peers at equal rates, records, BD-rates, plots."""
