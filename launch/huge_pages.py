"""The memory of a process that computes on the CPU."""

import os
import sys

TUNABLE = "glibc.malloc.hugetlb"


def prefer_huge_pages() -> None:
    """Begin this process again, if need be, with glibc told to ask for huge pages, which it is told at the start only.

    XLA's CPU backend takes the memory of a step anew every time, and the kernel then hands it out page by page: with
    pages of 4 KiB that is a fifth of a step.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or TUNABLE in tunables:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
