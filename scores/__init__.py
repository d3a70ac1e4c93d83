"""Metrics of trained models: `classes` (of a labelled set, by a `classifier`), `fid` (FID), `likelihood` (bits/dim)."""
