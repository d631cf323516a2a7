"""Ranks of the process group for Fabric, whose own environments read the variables of some launchers alone."""

import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment


class ProcessGroupEnvironment(ClusterEnvironment):
    """Ranks of PyTorch's process group, which is set up already.

    Args:
        local_rank: Rank of this process on its node.
    """

    def __init__(self, local_rank: int) -> None:
        super().__init__()
        self._local_rank = local_rank

    @staticmethod
    def detect() -> bool:
        """Return False, so that Fabric does not choose this environment by itself."""
        return False

    @property
    def creates_processes_externally(self) -> bool:
        """Whether the processes exist already."""
        return True

    @property
    def main_address(self) -> str:
        """No address, since the group is set up."""
        return ""

    @property
    def main_port(self) -> int:
        """No port, since the group is set up."""
        return 0

    def world_size(self) -> int:
        """Return the number of processes."""
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        """Ignore the number: that of the group counts."""

    def global_rank(self) -> int:
        """Return the rank of this process."""
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        """Ignore the rank: that in the group counts."""

    def local_rank(self) -> int:
        """Return the rank of this process on its node."""
        return self._local_rank

    def node_rank(self) -> int:
        """Return 0: fastood does not use the number of the node."""
        return 0
