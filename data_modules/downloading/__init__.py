"""Downloads data sets that have a stable public address.

`command` is `implicit-slate data download`; `catalog` lists what can be fetched and from where; `transfer` fetches a
file; `fid_weights` fetches FID's weights from one of two sources.
"""
