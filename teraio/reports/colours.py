"""Colours that people with any kind of colour vision tell apart.

In: nothing. Out: hex colours by kind of memory and by what moves. Must not know: charts.

Source: the palette of Masataka Okabe and Kei Ito (2008), with greys for what can't move.
"""

from __future__ import annotations

ROW_COLOURS = {
    "parameter": "#0072b2",
    "gradient": "#e69f00",
    "optimizer_state": "#009e73",
    "activation": "#cc79a7",
    "buffer": "#f0e442",
    "input": "#56b4e9",
    "workspace": "#8a8f98",
    "small": "#c4c8ce",
}
WRITE = "#d55e00"
READ = "#332288"
STALL = "#111827"
AWAY = "#e8eaee"
BUDGET = "#b91c1c"
PHASES = {"forward": "#eef2f7", "backward": "#dfe6ef", "optimizer": "#eef2f7", "other": "#f7f8fa"}
