"""Processes of one run, forked from a process that has imported everything once, where a launcher would import anew.

python tests/helpers/ranks.py COUNT SCRIPT ARGUMENTS: its exit status is the first one of theirs that is not 0.
"""

import gc
import os
import runpy
import socket
import sys


# Arrow's allocator has a thread of its own, and what is forked beside a thread may hang, rarely, when it ends.
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

from blank_pictures import save_blank
from matplotlib.figure import Figure

from training import finetune_ctc, pretrain  # noqa: F401  (what takes long to import)


Figure.savefig = save_blank


def main() -> None:
    count, *sys.argv = int(sys.argv[1]), *sys.argv[2:]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if os.path.isdir("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) == 1, "threads beside the one that forks"
    os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    gc.freeze()  # each would look through all that was imported, and copy its pages
    for rank in range(count):
        if os.fork() == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            runpy.run_path(sys.argv[0], run_name="__main__")
            return
    statuses = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count)]
    sys.exit(next((abs(status) for status in statuses if status), 0))


if __name__ == "__main__":
    main()
