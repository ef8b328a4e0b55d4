"""What no iteration can be."""

import numpy as np
import pytest

from policies.iteration import BrokenEnsemble, InitialState, Iteration


def an_iteration(weights=(0.5, 0.5), parents=(0, 1), lineage=((0,), (1,)), initial=()):
    return Iteration(4, np.array(weights, float), np.array(parents), lineage, initial)


@pytest.mark.parametrize(
    "fine",
    [
        an_iteration(),
        an_iteration(parents=(0, 0), lineage=((0,), (0, 2))),
        # A recycled walker carries the weight of those that reached the target, or were merged with it.
        an_iteration(parents=(0, -8), lineage=((0, 1), (1, 2)), initial=(InitialState(7, 0),)),
        an_iteration(parents=(-1, -1), lineage=((-1,), (-1,)), initial=(InitialState(0, 0),)),
    ],
)
def test_what_can_be(fine):
    fine.check()
    fine.check(3)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (an_iteration(weights=(0.5, 0.4)), "weights sum to one -1.0e-01"),
        (an_iteration(weights=(0.5, 0.5 + 1e-11)), "weights sum to one"),
        (an_iteration(weights=(1, 0)), "every walker needs a positive weight"),
        (an_iteration(weights=(np.nan, 1)), "every walker needs a positive weight"),
        (an_iteration((), (), ()), "there must be one"),
        (an_iteration(parents=(0,)), "2 weights, 1 parents"),
        (an_iteration(parents=(0, 2)), "walker 2 is a parent whose weight nobody carries"),
        (an_iteration(parents=(0, -8)), "initial state 7 was not made for it"),
        (an_iteration(parents=(0, 3), lineage=((0,), (3,))), "is none of the 3 walkers before"),
    ],
)
def test_what_cannot(broken, said):
    with pytest.raises(BrokenEnsemble, match=f"^iteration 4: .*{said.replace('+', '.')}"):
        broken.check(3)
