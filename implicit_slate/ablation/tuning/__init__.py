"""`implicit-slate tune`: find the best learning rate, clip and warmup for each gradient mode separately, with Optuna.

A trial is a prepared cell, run like the cells of grids. So it can resume, and has its curves and pictures in the same
places. Trials are recorded in Optuna's storage, which any number of processes and hosts may share.
"""
