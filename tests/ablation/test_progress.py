"""The progress display of a running grid."""

import io
import json

from rich.console import Console

from implicit_slate.ablation.progress import ProgressDisplay
from implicit_slate.locks import try_lock
from implicit_slate.run_folder import RunFolder


def test_each_cell_has_steps_of_its_own(tmp_path):
    folder = RunFolder(tmp_path, {"short": {}, "long": {}})
    for cell, step in (("short", 20), ("long", 100)):
        folder.cell(cell).mkdir(parents=True)
        progress = {"step": step, "steps_per_second": 2.0, "seconds": step / 2, "measures": {}}
        (folder.cell(cell) / "progress.json").write_text(json.dumps(progress))
    console = Console(width=120, height=40, record=True, file=io.StringIO())
    with try_lock(folder.cell("short")), try_lock(folder.cell("long")):
        console.print(ProgressDisplay(folder, {"short": 40, "long": 4000}).table())
        console.print(ProgressDisplay(folder, {"short": 40, "long": -1}).table())
    known, unknown = console.export_text().split("2 running")[1:]
    assert "20/40" in known and "100/4000" in known
    assert ", about 0:16:20 left" in known  # (20 + 3900) steps at 2 + 2 steps per second
    assert "left" not in unknown
