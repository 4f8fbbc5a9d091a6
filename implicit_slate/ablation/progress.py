"""The progress that `implicit-slate ablate` shows: a live table on a terminal, otherwise plain lines."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from implicit_slate.files import read_json
from implicit_slate.locks import is_locked
from implicit_slate.measures import final_loss
from implicit_slate.run_folder import FINISHED, RunFolder

PLAIN_SECONDS = 30.0
STYLES = {"complete": "green", "diverged": "yellow", "failed": "red", "running": "cyan", "waiting": "dim"}


class ProgressDisplay:
    """Shows the state of all cells, which it reads from files, so it does not matter which processes run them.

    `max_steps` has each cell's number of steps; it is below 1 if another setting ends training.
    """

    def __init__(self, folder: RunFolder, max_steps: Mapping[str, int]):
        self.folder, self.max_steps, self.console = folder, max_steps, Console()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A context in which the table is shown, or, without a terminal, a line from time to time."""
        if self.console.is_terminal:
            with Live(get_renderable=self.table, console=self.console, refresh_per_second=1):
                yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._say_now_and_then, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def event(self, cell: str, event: str) -> None:
        """Report that a cell starts, resumes or ends; on a terminal only failures, because the table shows the rest."""
        if not self.console.is_terminal or event == "failed":
            self._say(f"{event}: {cell}{self._details(cell)}")

    def table(self) -> Table:
        """The cells as a table that fits the terminal: running ones first, then the latest to finish."""
        rows = self.folder.rows()
        counts = Counter(row["status"] for row in rows)
        title = ", ".join(f"{counts[status]} {status}" for status in STYLES if counts[status])
        if pretraining := self._pretraining():
            title += f"; {pretraining}"
        table = Table(title=f"{title}{self._time_left(rows)}", title_justify="left", box=None)
        table.add_column("cell", no_wrap=True)
        for heading in ("state", "step", "steps/s", "val loss", "spectral norm"):
            table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
        room = max(self.console.height - 5, 1)
        order = ["running", *FINISHED[::-1], "waiting"]
        for row in sorted(rows, key=lambda row: order.index(row["status"]))[:room]:
            table.add_row(
                row["cell"],
                f"[{STYLES[row['status']]}]{row['status']}",
                f"{row['step']}/{self.max_steps[row['cell']]}" if row["step"] is not None else "",
                *map(_short, (row["steps_per_second"], final_loss(row), row["jacobian/spectral_norm_final"])),
            )
        if len(rows) > room:
            table.add_row(f"[dim]… and {len(rows) - room} more")
        return table

    def _say_now_and_then(self, over: threading.Event) -> None:
        while not over.wait(PLAIN_SECONDS):
            rows = self.folder.rows()
            running = [f"{row['cell']} at step {row['step'] or 0}" for row in rows if row["status"] == "running"]
            if pretraining := self._pretraining():
                running = [pretraining]
            done = sum(row["status"] in FINISHED for row in rows)
            now = "; ".join(running) or "none"
            self._say(f"{done} of {len(rows)} cells done{self._time_left(rows)}; running: {now}")

    def _say(self, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False, soft_wrap=True)

    def _pretraining(self) -> str:
        progress = read_json(self.folder.pretrain / "progress.json") if is_locked(self.folder.pretrain) else None
        return f"pretraining at step {progress['step']} of {progress['max_steps']}" if progress else ""

    def _time_left(self, rows: list[dict[str, Any]]) -> str:
        open_rows = [row for row in rows if row["status"] not in FINISHED]
        rate = sum(row["steps_per_second"] or 0 for row in open_rows if row["status"] == "running")
        most = [self.max_steps[row["cell"]] for row in open_rows]
        if not rate or min(most) < 1:
            return ""
        left = sum(most) - sum(row["step"] or 0 for row in open_rows)
        return f", about {_duration(left / rate)} left"

    def _details(self, cell: str) -> str:
        result = self.folder.result(cell) if cell in self.folder.cells else None
        if result is None:
            return ""
        if result["status"] == "failed":
            return f": {result['error']} (see {self.folder.cell(cell) / 'log.txt'})"
        parts = [f"step {result['step']}", f"val loss {_short(final_loss(result['measures'])) or 'none'}"]
        if result["seconds"]:
            parts.append(_duration(result["seconds"]))
        return f": {', '.join(parts)}"


def _duration(seconds: float) -> str:
    """For example `0:03:20`."""
    return str(timedelta(seconds=round(seconds)))


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
