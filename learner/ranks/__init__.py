"""The ranks: training processes under DeepSpeed, of which rank 0 leads."""
