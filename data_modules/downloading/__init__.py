"""Fetches data sets that have a stable public address.

`command` is `implicit-slate data download`; `catalog` says what can be fetched and from where; `transfer` fetches a
file; `fid_weights` has two sources for one.
"""
