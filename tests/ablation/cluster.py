"""A real SLURM cluster of two nodes on this machine, in a temporary folder."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.ablation.conftest import wait_until

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmctldPidFile={path}/slurmctld.pid
SlurmctldLogFile={path}/slurmctld.log
StateSaveLocation={path}/state
SlurmdPidFile={path}/%n.pid
SlurmdLogFile={path}/%n.log
SlurmdSpoolDir={path}/%n
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdTimeout=5
KillWait=30
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=n1,n2 PriorityTier=2
"""


def why_there_is_none() -> str | None:
    """Why no cluster can be made here, in one line; None if one can."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name, path=_path()) is None]
    if missing:
        return f"no SLURM here ({', '.join(missing)}); Debian has it in slurmctld, slurmd and slurm-client"
    return None if os.getuid() == 0 else "SLURM's daemons need root"


class Cluster:
    """The running cluster. Everything that uses it needs `SLURM_CONF` in its environment."""

    def __init__(self, path: Path):
        self.path, self.daemons = path, {}
        with contextlib.ExitStack() as free:
            found = [free.enter_context(contextlib.closing(socket.create_server(("", 0)))) for _ in range(3)]
            ports = [server.getsockname()[1] for server in found]
        (path / "state").mkdir()
        (path / "slurm.conf").write_text(CONFIG.format(path=path, host=socket.gethostname(), ports=ports))
        self.environment = {"SLURM_CONF": str(path / "slurm.conf"), "PATH": _path()}
        self._start("slurmctld", "slurmctld", "-D")
        self.start_nodes()

    def start_nodes(self) -> None:
        """Starts the nodes that are not running."""
        for node in ("n1", "n2"):
            if node not in self.daemons or self.daemons[node].poll() is not None:
                self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kills a node's daemon. Its tasks live on, as after a crash of the daemon."""
        self.daemons[node].kill()
        self.daemons[node].wait()

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        return done.stdout

    def stop(self) -> None:
        self.ask("scancel", "--user=root")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.ask("squeue", "-h"), seconds=10)
        for process in psutil.process_iter():  # the daemons, and tasks that they had no time to kill
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    process.kill()
        for daemon in self.daemons.values():
            daemon.wait()

    def _start(self, name: str, *command: str) -> None:
        with (self.path / f"{name}.out").open("w") as out:
            self.daemons[name] = subprocess.Popen(command, env=os.environ | self.environment, stdout=out, stderr=out)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@contextlib.contextmanager
def cluster_in(path: Path) -> Iterator[Cluster]:
    cluster = Cluster(path)
    try:
        wait_until(lambda: cluster.ask("sinfo", "-h", "-o", "%P %T %D").count("idle 2") == 2, seconds=30)
        yield cluster
    finally:
        cluster.stop()
