"""Measurements of this suite beside other libraries; see README.md."""
