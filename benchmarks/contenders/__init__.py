"""Samplers of several libraries behind one call, each in a module that only its process imports."""
