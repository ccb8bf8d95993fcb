"""Meshes of devices, and which dimensions of arrays are split over them."""

from mmjax.sharding.topology import quiet_libtpu

quiet_libtpu()
