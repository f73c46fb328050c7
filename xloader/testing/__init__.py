"""The laws of a Loader, for loaders and orders of your own: what raises AssertionError and says where."""

from xloader.randomness import measure as measure_randomness
from xloader.testing.contracts import OrderContract
from xloader.testing.plans import (
    assert_covers,
    assert_epochs_differ,
    assert_equal_steps,
    assert_topology_free,
)
from xloader.testing.rebuilds import assert_rebuilds
from xloader.testing.states import assert_resumes_everywhere, assert_state_is_small

__all__ = [
    "OrderContract",
    "assert_covers",
    "assert_epochs_differ",
    "assert_equal_steps",
    "assert_rebuilds",
    "assert_resumes_everywhere",
    "assert_state_is_small",
    "assert_topology_free",
    "measure_randomness",
]
