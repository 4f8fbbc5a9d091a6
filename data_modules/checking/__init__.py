"""Holds folders against the formats of their data sets: the command `implicit-slate data check`.

`survey` runs a check; there is a file for each data set, whose `survey(folder)` lists what is to be decoded.
"""

from data_modules.checking.command import main

__all__ = ["main"]
