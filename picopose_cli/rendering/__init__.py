"""Meshes and the renderers that draw them."""
