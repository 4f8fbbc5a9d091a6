"""Renders CLEVR-Mirror-like scenes with instance masks, with Mitsuba (extra `render`).

`scenes` samples scene descriptions; `geometry` and `mitsuba_scene` turn them into Mitsuba scenes; `render` makes image
and mask; `generate` writes whole folders and is the command `implicit-slate data render`; `tools` describes a folder,
or packs one into a zip file.
"""
