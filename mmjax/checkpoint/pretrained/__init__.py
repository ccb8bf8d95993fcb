"""Weights of other projects: Hugging Face folders of safetensors, in and out."""
