"""Triton kernels, one operator per file; installed as `l2c.kernels`, imported lazily by `l2c.ops`."""
