"""What numba keeps on disk."""

import os

from ppl_models.loops import forget_outdated


def test_functions_compiled_before_a_change_to_any_of_them_are_forgotten(tmp_path):
    packages = [tmp_path / "one", tmp_path / "other"]
    for package in packages:
        (package / "__pycache__").mkdir(parents=True)
    sources = [packages[0] / "caller.py", packages[1] / "called.py", packages[1] / "plain.py"]
    kept = [
        packages[0] / "__pycache__" / "caller.run-3.py311.nbi",
        packages[1] / "__pycache__" / "called.step-1.py311.nbi",
    ]
    other = packages[0] / "__pycache__" / "caller.cpython-311.pyc"
    for path, time in zip([*sources, *kept, other], [10, 20, 90, 40, 50, 1], strict=True):
        path.touch()
        os.utime(path, (time, time))

    forget_outdated(packages)  # a module without loops may change
    assert all(path.exists() for path in kept)
    os.utime(sources[1], (45, 45))
    forget_outdated(packages)
    assert [path.exists() for path in (*kept, other)] == [False, True, True]
