"""Plays hostile and damaged files, flags, disks and streams against every script; see __main__.py."""
