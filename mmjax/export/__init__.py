"""Exports of trained models: StableHLO, safetensors and ONNX."""
