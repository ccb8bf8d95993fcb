"""Device meshes, and the sharding of array dimensions over them."""

from mmjax.sharding.topology import silence_libtpu

silence_libtpu()
