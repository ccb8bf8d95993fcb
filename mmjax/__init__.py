"""mmjax: multimodal pretraining research in JAX. Data flows one way through the folders; see README.md."""

__version__ = "0.1.0"
