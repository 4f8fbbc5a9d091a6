"""SLURM: pretraining, cells (as an array) and report as batch jobs, each of which waits for the one before.

Running a cell takes one command and its folder. So a job is a batch script of a few lines, which stays in the run's
folder `slurm/`, where it can be read and submitted by hand. (submitit would pickle a Python function for every job,
keep its own results beside ours, and send its signal to a process that is not the cell.)
"""

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from implicit_slate.ablation.launchers import Work
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically
from implicit_slate.processes import BUSY
from implicit_slate.run_folder import status_of

MOST_DEATHS = 3
"""A task whose processes are killed (out of memory, for example) is not restarted if it was restarted this often, for
whatever reason: SLURM_RESTART_COUNT also counts time limits and preemptions."""

OF_A_CELL = ("gpus", "gres", "nodes", "ntasks", "cpus", "mem", "exclusive", "signal", "time")
"""Prefixes of the options that do not apply to the report's job."""

COMMAND = f"{shlex.quote(sys.executable)} -m implicit_slate.cli"

CELLS = f"""\
# The line of our number is the folder of the cell.
cell=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" "$list")
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}} SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}
srun --kill-on-bad-exit=1 {COMMAND} cell "$cell" >> "$cell/log.txt" 2>&1
status=$?
# {BUSY}: asked to stop (the time limit, a preemption), or another process works on the cell. Above 128: killed.
if [ $status = {BUSY} ] || {{ [ $status -gt 128 ] && [ ${{SLURM_RESTART_COUNT:-0}} -lt {MOST_DEATHS} ]; }}; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit $status
"""
"""The script of an array task, which follows a line that sets `list`."""


def launch(work: Work) -> Callable[[], bool] | None:
    """Submit all cells that have no result and are not queued. The returned function says if jobs are still queued."""
    jobs = Jobs(work)
    if work.options.dry_run:
        return jobs.print_scripts()
    queued(work.folder.path)  # raises `UserError` if there is no SLURM
    work.begin()
    with work.folder.lock():
        jobs.submit()
    return jobs.are_open


def queued(run: Path) -> dict[Path, str]:
    """The job ids of a run in the queue, by the folder of the cell, or by the script for the report's job.

    Raises:
        UserError: SLURM is not installed, or does not answer.
    """
    found, scripts = {}, run.resolve() / "slurm"
    for line in _run("squeue", "--me", "--array", "--noheader", "--format=%F %K %T %o").splitlines():
        job, task, state, command = line.split(maxsplit=3)
        script = Path(command)
        if script.parent == scripts and state != "COMPLETING":
            lines = script.with_suffix(".txt").read_text().splitlines() if task.isdecimal() else None
            found[Path(lines[int(task) - 1]) if lines else script] = job
    return found


class Jobs:
    """The batch jobs of a run, both queued and still to be submitted."""

    def __init__(self, work: Work):
        self._work = work
        self._folder = work.folder.path.resolve()
        self._scripts = self._folder / "slurm"
        options = work.options
        given = dict(option.partition("=")[::2] for option in options.slurm or [])
        ours = {
            "nodes": work.nodes,
            "ntasks-per-node": work.devices,
            "gpus-per-node": work.devices,
            "time": options.time,
            "partition": options.partition,
            "signal": "USR1@120",
        }
        if work.on_cpu or any(key.startswith(("gpus", "gres")) for key in given):
            del ours["gpus-per-node"]
        self._options = {key: value for key, value in ours.items() if value is not None} | given
        self._limit = f"%{options.max_parallel}" if options.max_parallel else ""

    def submit(self) -> None:
        work, in_queue = self._work, queued(self._folder)
        there = [folder for folder in work.cells.values() if folder.resolve() in in_queue]
        missing = [folder for folder in work.cells.values() if folder not in there and status_of(folder) != "running"]
        print(f"{len(work.cells)} cells without a result, {len(there)} of them queued already", flush=True)
        if not missing:
            return
        before = []
        if work.pretrain:
            job = in_queue.get(work.pretrain.resolve())
            before = [job or self._submit(*self._cells("pretrain", [work.pretrain]))]
            print(f"pretraining: job {before[0]}", flush=True)
        name = f"cells-{len([*self._scripts.glob('cells-*.sh')]) + 1}"
        cells = self._submit(*self._cells(name, missing), *(f"--dependency=afterok:{job}" for job in before))
        print(f"cells: job {cells}, tasks 1 to {len(missing)}", flush=True)
        jobs = [*before, cells]
        try:
            jobs.append(self._submit(*self._report(), f"--dependency=afterany:{cells}"))
            print(f"report: job {jobs[-1]}")
        except UserError as error:  # some clusters refuse jobs such as the report's
            print(f"no job for the report, which `implicit-slate report` makes: {error}", file=sys.stderr)
        print(f"to stop them: scancel {' '.join(jobs)}")

    def are_open(self) -> bool:
        try:
            return bool(queued(self._folder))
        except UserError:  # the controller may be restarting; Ctrl-C ends the waiting
            return True

    def print_scripts(self) -> None:
        pretrain = [self._cells("pretrain", [self._work.pretrain])] if self._work.pretrain else []
        for script, content, _ in [*pretrain, self._cells("cells-1", [*self._work.cells.values()]), self._report()]:
            print(f"{script}:\n\n{content}")
        print("Hours are measured where cells would run: --dry-run with --launcher local, in a job on one node.")

    def _cells(self, name: str, folders: Sequence[Path]) -> tuple[Path, str, str]:
        """The path of a script, its content, and the content of its list of folders."""
        script = self._scripts / f"{name}.sh"
        array = {"array": f"1-{len(folders)}{self._limit}", "requeue": "", "open-mode": "append"}
        options = {**array, "output": f"{self._scripts}/%x-%A_%a.txt", **self._options}
        content = f"list={shlex.quote(str(script.with_suffix('.txt')))}\n{CELLS}"
        return script, self._script(name, options, content), "".join(f"{folder.resolve()}\n" for folder in folders)

    def _report(self) -> tuple[Path, str, str]:
        options = {key: value for key, value in self._options.items() if not key.startswith(OF_A_CELL)}
        options = {"output": f"{self._scripts}/%x-%j.txt", "time": "15", **options}
        return (
            self._scripts / "report.sh",
            self._script("report", options, f"{COMMAND} report {shlex.quote(str(self._folder))}\n"),
            "",
        )

    def _script(self, name: str, options: Mapping[str, object], content: str) -> str:
        options = {"job-name": f"{self._folder.name}-{name}", **options}
        lines = (
            f"#SBATCH --{key}" + (f"={shlex.quote(str(value))}" if value != "" else "")
            for key, value in options.items()
        )
        return "\n".join(("#!/bin/bash", *lines, content))

    def _submit(self, script: Path, content: str, folders: str, *options: str) -> str:
        """Write the script and submit it; returns the job's id."""
        if folders:
            write_atomically(script.with_suffix(".txt"), folders)
        write_atomically(script, content)
        answer = _run("sbatch", "--parsable", "--kill-on-invalid-dep=yes", *options, str(script))
        return answer.strip().partition(";")[0]


def _run(*command: str) -> str:
    """The output of a SLURM command. Raises `UserError` with its error message."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"--launcher slurm: this machine has no {command[0]}") from None
    if done.returncode:
        raise UserError(f"{command[0]}: {' '.join(done.stderr.split())}")
    return done.stdout
