"""Synthetic house numbers: statistics, fonts, lettering, surface, lighting, camera; close views, scenes, negatives."""
