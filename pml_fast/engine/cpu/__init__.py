"""The compiled C++ kernels and what drives them."""
