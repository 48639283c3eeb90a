"""Synthetic house numbers, in stages: statistics, fonts, lettering, surface, lighting, camera, render."""
