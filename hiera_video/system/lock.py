"""One run a folder: a lock that ends with its process, however that ends."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from hiera_video.system.errors import UserError


class FolderLock:
    """Holds `folder/.lock` until `close` or the end of this process.

    A POSIX lock (lockf). Children do not inherit it, so a data-loading process that outlives a
    killed run does not hold it. Raises UserError while another process holds it. Where the file
    system knows no locks (Lustre with noflock, NFS without lockd), `missing` says why there is
    none; empty: it is held.
    """

    def __init__(self, folder: Path):
        self.missing = ""
        self._file = open(folder / ".lock", "a+")  # noqa: SIM115 - held for the life of the run
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EACCES, errno.EAGAIN):
                self.missing = str(e.strerror)
                return
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"a run is at work in {folder} ({holder}); "
                "wait for it, or set output to another folder"
            ) from e
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
