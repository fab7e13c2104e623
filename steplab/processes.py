"""Processes that do not outlive the one that started them."""

import multiprocessing
import os
import threading


def follow_parent() -> None:
    """To be called first in a new process: it ends when its parent ends, however that comes about."""
    parent = multiprocessing.parent_process()

    def follow():
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
