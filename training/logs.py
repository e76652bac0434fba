"""Log lines on the terminal: ours, not those of every library below."""

import logging


CHATTY = ("httpx", "httpx2", "datasets", "evaluate", "matplotlib", "fsspec")


def log_to_terminal() -> None:
    """Time, level and message on standard error; of chatty libraries warnings alone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
