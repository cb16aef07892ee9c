"""What importing TensorFlow leaves behind in the process."""

from __future__ import annotations

import gc

from tlearn.quiet import import_tensorflow


def test_an_import_leaves_the_collector_as_it_was_but_for_what_stays() -> None:
    before = gc.get_threshold()
    gc.unfreeze()
    import_tensorflow.__wrapped__()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() > 100_000  # modules are not looked through again
    assert gc.isenabled()
