"""The id of the process is right in a forked child, and costs no system call."""

import subprocess
import sys

PROGRAM = """
import os
from ailf.runtime.process import process_id

assert process_id() == os.getpid()
child = os.fork()
if not child:
    os._exit(process_id() != os.getpid())
assert os.waitpid(child, 0)[1] == 0
os.getpid = None
assert process_id()
"""


def test_a_forked_child_has_its_own_id() -> None:
    """After a fork parent and child each have their own; `os.getpid` is not called."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
