"""Pose errors, matching, recall and average precision on arrays: no files."""
