"""Overlays, contact sheets and plots."""
