"""What failures say: of the task, of its start, and of the site."""

import pytest

from agents.attempts import Failure, signature, verdict

NAN = ("nan", "energy became NaN")
GONE = ("manager_lost", "the manager is gone")
OTHER = ("error", "no such file")


@pytest.mark.parametrize(
    ("failures", "max_attempts", "told"),
    [
        ([NAN], 3, "again"),
        ([NAN, NAN], 3, "again"),
        ([NAN, NAN, NAN], 3, "systematic"),
        ([OTHER, NAN, NAN, NAN], 3, "systematic"),
        ([NAN, NAN, OTHER], 3, "again"),
        ([NAN, OTHER] * 4, 3, "again"),
        ([NAN, OTHER] * 4 + [NAN], 3, "random"),
        ([GONE] * 8, 3, "again"),
        ([GONE] * 9, 3, "random"),
        ([NAN], 1, "systematic"),
        ([GONE], 1, "again"),
        ([GONE] * 3, 1, "random"),
        ([("worker_lost", "killed")] * 3, 3, "systematic"),
    ],
)
def test_the_same_failure_again_and_again_is_systematic(failures, max_attempts, told):
    assert verdict(failures, max_attempts) == told


def test_numbers_do_not_tell_failures_apart():
    one = Failure("nan", "segment 12 from segment 3 frame 4: energy became NaN", "Traceback (1)")
    other = signature("nan", "segment 7 from segment 3 frame 4: energy became NaN\nTraceback (2)")
    assert one.signature == other == ("nan", "segment # from segment # frame #: energy became NaN")
    assert one.told.startswith("segment 12")
    assert one.told.endswith("Traceback (1)")
    assert signature("error", "<object at 0x7f3c>") == signature("error", "<object at 0x1>")
    assert signature("error", None) == ("error", "")
