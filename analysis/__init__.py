"""Analysis: records in, tables and figures out.

`frame.load` reads a sweep folder into one DataFrame; each module of this folder makes one table or figure from that
frame and is a notebook at the same time (percent format); `report` runs all of them. Import what you need from its
module: this package itself imports neither pandas nor matplotlib, so that the command line stays quick.
"""
