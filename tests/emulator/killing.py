"""A machine that is killed, and gone."""

import os
import signal
import time


def kill_and_wait(machine):
    """Until its process is gone it still counts as running: the system takes a while to free its memory."""
    os.kill(machine.status().process_id, signal.SIGKILL)
    end = time.monotonic() + 30
    while machine.status().process_id:
        assert time.monotonic() < end
        time.sleep(0.01)
