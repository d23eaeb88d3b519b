from mebqat_lite.experiments.sweeps import _statements


def test_comments_and_docstrings_change_no_key():
    plain = "def f(x):\n    return x + 1\n"
    told = '"""A module."""\n\n\ndef f(x):  # why\n    """Add one."""\n    return x + 1\n'
    assert _statements(plain) == _statements(told) != _statements(plain.replace("1", "2"))
