"""The CUDA C++ kernels and what drives them: what Triton does badly."""
