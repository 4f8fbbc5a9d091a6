"""`implicit-slate tune`: the best learning rate, clip and warmup of each gradient mode by itself, found by Optuna.

A trial is a prepared cell, run as those of grids are; so it resumes, and its curves and pictures are where a grid has
them. What has been tried is in Optuna's storage, which any number of processes and hosts may share.
"""
