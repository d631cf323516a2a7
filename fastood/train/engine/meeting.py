"""Meeting of the processes of a run in a store, before they form a group."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from fastood.train.engine.launch import Launch

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

JOIN_TIMEOUT = timedelta(minutes=5)
"""Time from the first process that joins to the last one; nodes take different times to start Python."""


def meet(launch: Launch) -> Store:
    """Open the store through which the processes find each other, and wait until all have joined.

    The processes of a start agree on a name that no other start has, and use only keys below it: torchrun keeps its
    store when it restarts them, and the address of a process that has died could be mistaken for that of a new one.

    Returns:
        The store, for keys of this start.

    Raises:
        ConnectionError: If torchrun has ended meanwhile.
        OSError: If the first process cannot open MASTER_PORT.
        TimeoutError: If a process does not join within `JOIN_TIMEOUT`; the error names its rank.
    """
    store = _open_store(launch)
    deadline = time.monotonic() + JOIN_TIMEOUT.total_seconds()
    own = secrets.token_hex(8)
    meeting = _lead(store, launch, own, deadline) if launch.rank == 0 else _follow(store, launch, own, deadline)
    prefixed: Store = dist.PrefixStore(f"fastood/{meeting}", store)  # type: ignore[attr-defined]
    return prefixed


def _lead(store: Store, launch: Launch, own: str, deadline: float) -> str:
    """Announce a new meeting to the other processes, and confirm it once all have joined; return its name."""
    store.set("fastood/meeting", own)
    keys = {rank: f"fastood/{own}/come/{rank}" for rank in range(1, launch.processes)}
    missing = dict(keys)
    while missing:
        missing = {rank: key for rank, key in missing.items() if not store.check([key])}
        if missing and time.monotonic() > deadline:
            ranks = ", ".join(map(str, missing))
            raise TimeoutError(
                f"of {launch.processes} processes, those of rank {ranks} have not joined within "
                f"{JOIN_TIMEOUT.seconds} s ({launch.launcher}, {launch.address}:{launch.port})"
            )
        time.sleep(0.05 if missing else 0)
    store.set(f"fastood/{own}/all", json.dumps([store.get(key).decode() for key in keys.values()]))
    return own


def _follow(store: Store, launch: Launch, own: str, deadline: float) -> str:
    """Join the latest meeting until the first process confirms that this process is in it; return its name."""
    come = ""
    while time.monotonic() < deadline:
        if store.check(["fastood/meeting"]):
            meeting = store.get("fastood/meeting").decode()
            if meeting != come:
                store.set(f"fastood/{meeting}/come/{launch.rank}", own)
                come = meeting
            # A meeting of an earlier start is complete as well, without this process.
            if store.check([f"fastood/{come}/all"]) and own in json.loads(store.get(f"fastood/{come}/all")):
                return come
        time.sleep(0.05)
    raise TimeoutError(
        f"process {launch.rank} of {launch.processes} has not met all others within {JOIN_TIMEOUT.seconds} s; the "
        f"error of process 0 names those that are missing ({launch.launcher}, {launch.address}:{launch.port})"
    )


def require_launcher() -> None:
    """Check that torchrun still runs: PyTorch would try for minutes to connect to one that was killed.

    Raises:
        ConnectionRefusedError: If nothing listens at the store that torchrun opens before it launches processes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60).close()
    except ConnectionRefusedError as error:
        raise ConnectionRefusedError(error.errno, "torchrun, which launched this process, has ended") from None
    except OSError:
        return  # PyTorch tries again, and reports the error if it persists.


def _open_store(launch: Launch) -> Store:
    """Open the store of torchrun, or else that of the first process, which this one may be."""
    require_launcher()
    place = f"{launch.address}:{launch.port}"
    try:
        if launch.launcher == "torchrun":
            joining = dist.rendezvous(  # type: ignore[attr-defined]
                f"env://?rank={launch.rank}&world_size={launch.processes}", timeout=JOIN_TIMEOUT
            )
            store: Store = next(joining)[0]
        else:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                launch.address,
                launch.port,
                launch.processes,
                is_master=launch.rank == 0,
                timeout=JOIN_TIMEOUT,
                wait_for_workers=False,
            )
    except (dist.DistError, TimeoutError) as error:
        if launch.rank == 0 and launch.launcher != "torchrun":
            raise OSError(
                f"process 0 cannot open port {launch.port} for the other processes: {_first_line(error)}; set "
                "MASTER_PORT to a free port, and MASTER_ADDR to this host"
            ) from None
        raise TimeoutError(
            f"process {launch.rank} of {launch.processes} has not reached process 0 on {place} within "
            f"{JOIN_TIMEOUT.seconds} s: {_first_line(error)}"
        ) from None
    return store


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
