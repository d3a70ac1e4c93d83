"""Metrics of trained models: `classes` (classifier of the digits, its scores), `fid` (FID), `likelihood` (bits/dim)."""
