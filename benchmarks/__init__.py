"""One script for every figure that the documentation quotes."""
