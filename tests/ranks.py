"""Several ranks as torchrun starts them, without its seconds: processes that find each other through its variables."""

import os
import socket
import traceback

import torch
from forked import process

from imbook import distributed


def ranks(target, folder, *given, size=2, device="cpu", **settings):
    """target(rank's folder, *given) on each rank within `distributed.start`; returns what each gives back, a list.

    An error of a rank comes back as its text. settings: of `distributed.start`.
    """
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    started = [process(_rank, (target, folder, given, k, size, port, device, settings)) for k in range(size)]
    for each in started:
        each.start()
    for each in started:
        each.join()
    there = [folder / f"{k}.pt" for k in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in there]


def _rank(target, folder, given, rank, size, port, device, settings):
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    try:
        with distributed.start(device, **settings):
            found = target(*given)
    except BaseException as error:
        found = "".join(traceback.format_exception(error))
    torch.save(found, folder / f"{rank}.pt")
