"""The pool of slabs."""

from tidemill.engine.slabs import Slabs, SlabsStatistics


def test_the_slab_freed_last_is_given_out_first():
    """It is still in the caches; statistics count what is free, and what was touched."""
    slabs = Slabs(count=3, size=1 << 16)
    assert slabs.statistics() == SlabsStatistics(3, 3, 0)
    first, packer = slabs.take()
    second, _ = slabs.take()
    packer.blob(bytes(5_000))
    assert slabs.statistics() == SlabsStatistics(3, 1, 8_192)
    slabs.give_back(second)
    slabs.give_back(first)
    assert slabs.take()[0] == first
    slabs.close()
