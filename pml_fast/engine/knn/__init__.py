"""The nearest-neighbour engine: the closest columns of each row, and the ranks of its positives, without the matrix."""
