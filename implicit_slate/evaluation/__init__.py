"""From a checkpoint to the numbers of the paper's table: `implicit-slate evaluate` and `implicit-slate generate`."""
