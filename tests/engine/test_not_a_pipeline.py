"""What is no pipeline, nor part of one, is refused with a sentence."""

import re
import traceback

import pytest

import tidemill as tm
from tidemill.errors import PlanError


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: tm.run("pump.py"), "what runs is a Pipeline(source, plan, sink), and this is a str"),
        (lambda: tm.sources.Replay("x.csv", columns=["value"]), "columns=['value'] of Replay must be a dict of fields"),
        (lambda: tm.sources.Replay("x.csv", key=("site", "sensor")), "several fields are one as key='{site}/{sensor}'"),
        (
            lambda: tm.Pipeline(tm.sources.Records([]), tm.Plan(), "rows.db"),
            "'rows.db' is not a sink; give one such as",
        ),
        (lambda: tm.Pipeline("rows.csv", tm.Plan(), tm.sinks.Latest()), "'rows.csv' is not a source; give one such as"),
        (lambda: tm.sources.Synthetic(start="soon"), "start='soon' of Synthetic must be a time in ISO 8601"),
        (lambda: tm.sources.Synthetic(start=7), "start=7 of Synthetic must be a time in ISO 8601"),
    ],
)
def test_what_is_of_the_wrong_type_is_named(made, why):
    """With what it has to be."""
    with pytest.raises(PlanError, match=re.escape(why)):
        made()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"seconds": "5"}, "seconds='5' must be a number of seconds"),
        ({"grace": True}, "grace=True must be a number of seconds"),
        ({"silent_after": "1min"}, "silent_after='1min' must be a number of seconds"),
        ({"max_dead": 5}, "max_dead=5 must be a share or a number and a time, such as"),
        ({"dead_letters": 5}, "dead_letters=5 must be the path of a file"),
        ({"report": 5}, "report=5 must be the path of a file"),
        ({"state": 5}, "state=5 must be a folder, True, False or a tm.State"),
        ({"metrics": 9464}, "metrics=9464 must be True, False or HOST:PORT"),
        ({"limits": 5}, "limits=5 must be a tm.Limits"),
    ],
)
def test_an_option_of_a_run_that_has_another_type_is_named(options, why):
    """With what it takes, before anything has begun."""
    pipeline = tm.Pipeline(tm.sources.Records([]), tm.Plan(), tm.sinks.Latest())
    with pytest.raises(PlanError, match=re.escape(why)):
        tm.run(pipeline, lanes=0, **options)


class Grumpy(tm.sources.Records):
    def check(self):
        raise tm.InputError("the sensors are on strike")


@pytest.mark.parametrize(
    ("source", "stages", "ours_only"),
    [
        (tm.sources.Records([{"sensor": "S1", "time": 1, "value": 2.0}]), [tm.Rolling("valeu", 3)], True),
        (tm.sources.Replay("nowhere.csv"), [], True),
        (Grumpy([]), [], False),
    ],
)
def test_a_refusal_shows_the_users_line_and_none_of_ours(source, stages, ours_only):
    """What is refused with a sentence has no frames behind the call, unless code of the user's is among them."""
    with pytest.raises((PlanError, tm.InputError)) as caught:
        tm.run(tm.Pipeline(source, tm.Plan(*stages), tm.sinks.Latest()), lanes=0)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert (len(frames) <= 2) is ours_only
    assert ("check" in frames) is not ours_only
