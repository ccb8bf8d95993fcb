"""Independent Gaussians, such as posteriors and priors of latents."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Bounds of the logarithm of a deviation.
MIN_LOG_DEVIATION, MAX_LOG_DEVIATION = -6.0, 3.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean and standard deviation of every number, in float32."""

    mean: Float[Array, "..."]
    deviation: Float[Array, "..."]

    @classmethod
    def of(cls, x: Float[Array, "..."]) -> "Gaussian":
        """From an array with means, then log-deviations, along the last dimension."""
        mean, log_deviation = jnp.split(x.astype(jnp.float32), 2, -1)
        return cls(mean, jnp.exp(jnp.clip(log_deviation, MIN_LOG_DEVIATION, MAX_LOG_DEVIATION)))

    def sample(self, key: jax.Array | None) -> Float[Array, "..."]:
        """A sample; the mean without a key."""
        if key is None:
            return self.mean
        noise = jax.random.normal(key, self.mean.shape, out_sharding=jax.typeof(self.mean).sharding)
        return self.mean + self.deviation * noise

    def kl_divergence(self, other: "Gaussian") -> Float[Array, "..."]:
        """KL(self || other), nats."""
        ratio = jnp.square(self.deviation / other.deviation)
        return 0.5 * (ratio + jnp.square((self.mean - other.mean) / other.deviation) - 1 - jnp.log(ratio))
