"""The console command: `mmjax NAME ...`, which is `python -m launch.NAME ...` of an installed mmjax."""

import difflib
import runpy
import sys

COMMANDS = {
    "inspect": "look at data of your own",
    "new": "write an experiment for data of your own",
    "train": "train an experiment, or resume it",
    "ablate": "compare choices of a key",
    "evaluate": "evaluate a run's checkpoints, or compare runs",
    "generate": "generate images, text or speech with a trained model",
    "export": "export a trained model for use elsewhere",
    "plan": "predict memory and step time on other devices",
    "profile": "see where the time of a step goes",
    "benchmark": "compare speed with other libraries",
    "prepare": "build or convert a data set",
    "local": "run a command in several processes on this machine",
    "cluster": "write a job script for a scheduler",
}


def main() -> int:
    """Run the command that the first word names; returns 2 where there is none of that name."""
    program = "mmjax" if __package__ == "mmjax.launch" else "python -m launch"
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        print(f"usage: {program} COMMAND ...\n\ncommands:")
        print("\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()))
        print(f"\n{program} COMMAND --help says what one needs.")
        return 0 if words else 2
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1, 0)[0]
        there = ", ".join(COMMANDS)
        print(f"error: unknown command {words[0]!r}; the nearest is {near}; there are {there}", file=sys.stderr)
        return 2
    sys.argv = [sys.argv[0], *words[1:]]
    runpy.run_module(f"{__package__}.{words[0]}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
