"""Renders scenes in the manner of CLEVR-Mirror, with instance masks, by Mitsuba (extra `render`).

`scenes` draws what stands where; `geometry` and `mitsuba_scene` turn that into a Mitsuba scene; `render` makes picture
and mask; `generate` writes whole folders and is the command `implicit-slate data render`; `tools` describes a folder,
compares two, and puts one into a zip file.
"""
