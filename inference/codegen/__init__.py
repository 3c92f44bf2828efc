"""Log densities as C: a program's tensor operations become loops that no Python enters.

``tape`` records the operations of a log density and of its gradient at one point. ``lowering``
runs them again on arrays of symbols, ``expressions``, where reshapes and broadcasts vanish: short
axes are written out, one long axis at a time becomes a loop. ``emission`` orders sums and loops and
writes one C function for any number of chains; ``compiler`` compiles it and keeps it on disk.
"""
