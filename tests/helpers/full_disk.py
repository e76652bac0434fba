"""A disk that is full, behind a stream."""

import errno
import io
import os


class FullDisk(io.StringIO):
    """Takes nothing: for `contextlib.redirect_stdout`."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
