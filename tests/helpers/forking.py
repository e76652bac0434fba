"""A process that has imported what takes long, and forks another from itself for each script that it is to run.

python tests/helpers/forking.py IMPORTS: it answers each line of its input, until that ends as the tests do.
"""

import gc
import json
import os
import runpy
import socket
import sys


# Arrow's allocator has a thread of its own, and what is forked beside a thread may hang, rarely, when it ends.
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")


def main() -> None:
    exec(sys.argv[1], {})
    if os.path.isdir("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) == 1, "threads beside the one that forks"
    gc.freeze()  # each would look through all that was imported, and copy its pages
    for line in sys.stdin:
        asked = json.loads(line)
        if "status_of" in asked:
            pid, status = os.waitpid(asked["status_of"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            return run(**asked)
        print(json.dumps(answer), flush=True)


def run(argv: list[str], environment: dict, folder: str, output: str, errors: str, ranks: int | None) -> None:
    """The script in this process, or in several of one run; then the status is the first one that is not 0."""
    os.setsid()
    for number, path in enumerate((os.devnull, output, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = argv
    if ranks is None or fork_ranks(ranks):
        runpy.run_path(argv[0], run_name="__main__")


def fork_ranks(count: int) -> bool:
    """True in each rank; the process that forks them waits, and ends with them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for rank in range(count):
        if os.fork() == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return True
    statuses = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count)]
    sys.exit(next((abs(status) for status in statuses if status), 0))


if __name__ == "__main__":
    main()
