"""The memory of a process that computes on the CPU."""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb"


def prefer_huge_pages() -> None:
    """Restart this process with glibc's huge pages turned on, which only its environment can do.

    XLA's CPU backend takes the memory of a step anew every time, and the kernel then hands it out page by page: with
    pages of 4 KiB that is a fifth of a step.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or TUNABLE in tunables:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
