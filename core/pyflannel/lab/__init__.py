"""N nodes on this machine: network namespaces with an underlay, containers and real daemons.

The fixture of pyflannel's own integration tests, of plugin authors' ones, and what ``pyflannel lab`` shows. Nothing
outside the lab's own namespaces is touched, and nothing is left behind, whatever ends the lab. See ``docs/lab.md``.
"""

from pyflannel.lab.daemon import Daemon
from pyflannel.lab.lab import Container, Lab, Machine, Node
from pyflannel.lab.measure import Capture, Loss, Matrix, Pair, Ping, Throughput
from pyflannel.lab.sandbox import CommandError, Namespace, Process, Sandbox, missing_programs, rootless
from pyflannel.lab.topology import ContainerNetwork

__all__ = [
    "Capture",
    "CommandError",
    "Container",
    "ContainerNetwork",
    "Daemon",
    "Lab",
    "Loss",
    "Machine",
    "Matrix",
    "Namespace",
    "Node",
    "Pair",
    "Ping",
    "Process",
    "Sandbox",
    "Throughput",
    "missing_programs",
    "rootless",
]
