"""Where the packages of a distribution are: `launch` and `experiments` of the checkout are installed inside mmjax.

Names as common as these two would clash in site-packages, and in the checkout `python -m launch.train` is to work. So
`launch` becomes mmjax.launch, and `experiments` mmjax.experiments; that is why they import each other relatively. An
editable install maps them in the same way.
"""

from setuptools import find_packages, setup

INSIDE = ("launch", "experiments")

setup(
    packages=[
        *find_packages(include=["mmjax", "mmjax.*"]),
        *(f"mmjax.{name}" for name in find_packages(include=["launch", "launch.*"])),
        "mmjax.experiments",
    ],
    package_dir={f"mmjax.{name}": name for name in INSIDE},
)
