"""What computes the integers: C++, Triton, PyTorch, the reference."""
