"""Hybrid Mamba/Transformer super-resolution."""
