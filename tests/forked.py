"""Processes of tests that start at once: modules are imported once, by `warm.py`, for all of them. Not on Windows."""

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["warm"])


def process(target, args):
    """A process, not started yet. The server that it is forked from finds `warm.py` by PYTHONPATH, or, in silence, not:
    before Python 3.14 it is not told of sys.path.
    """
    before = os.environ.get("PYTHONPATH")
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return FORKED.Process(target=target, args=args)


def python(source, folder, **environment):
    """Run the source by itself, in that folder, in a process of its own: (exit status, what was printed)."""
    log = folder / "log"
    child = process(_run, (source, folder, log, environment))
    child.start()
    child.join()
    return child.exitcode, log.read_text()


def _run(source, folder, log, environment):
    os.chdir(folder)
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(log, "w", buffering=1)
    exec(compile(source, "<source>", "exec"), {"__name__": "__main__"})
