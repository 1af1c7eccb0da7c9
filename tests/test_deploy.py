"""What is in deploy/ fits the program that it deploys: options, signals, times, and names of metrics."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import tidemill as tm
from tidemill.app.cli import answer
from tidemill.app.exit_codes import ExitCode

DEPLOY = Path(__file__).parents[1] / "deploy"
UNIT = (DEPLOY / "tidemill@.service").read_text()
ALERTS = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "dashboard.json").read_text())


def settings() -> dict[str, str]:
    """Of the unit; each once."""
    pairs = [line.partition("=")[::2] for line in UNIT.splitlines() if re.match(r"\w+=", line)]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


def words_of_the_image() -> list[list[str]]:
    """The commands that the container runs, as words after ``tidemill``."""
    text = (DEPLOY / "Containerfile").read_text()
    given = {
        name: json.loads(words)
        for name, words in re.findall(r"^(?:HEALTHCHECK .*)?(ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE)
    }
    asked = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    assert asked
    assert given["ENTRYPOINT"] == ["tidemill"]
    return [given["CMD"], json.loads(asked[1])[1:]]


@pytest.mark.parametrize(
    "words",
    [
        settings()["ExecStart"].replace("%i", "plant").removesuffix(" $TIDEMILL_OPTIONS").split()[1:],
        *words_of_the_image(),
    ],
)
def test_the_commands_are_understood(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such plan and no run they end with that, and not with a word that is not known."""
    monkeypatch.chdir(tmp_path)
    words = [word.replace("/etc/tidemill", str(tmp_path)) for word in words]
    assert answer([*words, *(["127.0.0.1:1"] if words == ["status"] else [])]) in (ExitCode.BAD_INPUT, ExitCode.OUTSIDE)


def test_the_unit_gives_a_run_time_to_stop_and_ends_it_in_order() -> None:
    """SIGTERM to the run alone, longer than its grace; what would fail again is not started again."""
    unit = settings()
    grace = float(unit["ExecStart"].split("--grace ")[1].split()[0])
    assert float(unit["TimeoutStopSec"]) > grace
    assert unit["KillMode"] == "mixed"
    for_good = {ExitCode.USAGE, ExitCode.BAD_PIPELINE, ExitCode.BAD_INPUT, ExitCode.MISSING_EXTRA}
    too_many_dead = 9
    assert {int(code) for code in unit["RestartPreventExitStatus"].split()} == {*for_good, too_many_dead}
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert float(unit["WatchdogSec"]) > 0
    assert "ProtectSystem" in unit
    assert "MemoryDenyWriteExecute" not in unit


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """By its own checker, on a machine that has one; it looks for the program too, so it gets one that is there."""
    checker = shutil.which("systemd-analyze")
    assert checker or sys.platform != "linux" or not Path("/run/systemd/system").exists()
    if checker:
        made = tmp_path / "tidemill@plant.service"
        made.write_text(UNIT.replace("/opt/tidemill/bin/tidemill", "/bin/true"))
        done = subprocess.run([checker, "verify", made], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, [line for line in done.stderr.splitlines() if made.name in line]) == (0, [])


def test_the_container_runs_as_a_user_without_rights() -> None:
    """And installs what was built, with extras that exist."""
    text = (DEPLOY / "Containerfile").read_text()
    assert re.search(r"^USER (\d+)$", text, re.MULTILINE)[1] != "0"  # type: ignore[index]
    assert text.index("\nUSER") < text.index("\nENTRYPOINT")
    extras = set(re.search(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)[1].split(","))  # type: ignore[index]
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    assert {extra for extra in extras if f"\n{extra} = [" in project} == extras


def expressions() -> Iterator[tuple[str, str]]:
    for rule in ALERTS["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


LIVE = [b'{"sensor": "S1", "value": 1}\n', b'{"sensor": "S2", "value": -1}\n', b"no JSON\n"]


LATER = ("records_gone_total", "lane_busy_ratio")
"""What a page shows once there is something to show."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The samples that a real run shows, with their labels: one that keeps state, and has had bad luck with a record."""

    folder = tmp_path_factory.mktemp("deployed")

    async def run() -> str:
        source = tm.sources.TCP()
        pipeline = tm.Pipeline(source, tm.Plan(tm.Filter("value > 0")), tm.sinks.Latest(), name="deployed")
        async with tm.serve(pipeline, lanes=1, state=tm.State(folder), metrics="127.0.0.1:0") as live:
            _, writer = await asyncio.open_connection(*await source.wait_listening())
            writer.writelines(LIVE)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

            def scraped() -> str:
                text = ""
                while not all(f"tidemill_{name}{{" in text for name in LATER):
                    with urllib.request.urlopen(f"{live.metrics_url}/metrics", timeout=120) as answered:
                        text = answered.read().decode()
                return text

            return await asyncio.to_thread(scraped)

    families = text_string_to_metric_families(asyncio.run(run()))
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_is_one_that_a_run_shows(where: str, expression: str, page: dict[str, set[str]]) -> None:
    """By name, and with the labels that it is put together by."""
    names = re.findall(r"tidemill_\w+", expression)
    assert names or where == "TidemillGone"
    assert [name for name in names if name not in page] == []
    labels = {label.strip() for words in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in words.split(",")}
    labels |= set(re.findall(r"\{(\w+)=~", expression))
    assert labels <= {"instance", *(label for name in names for label in page[name])}
    assert expression.count("(") == expression.count(")")


def fires(alert: str, now: dict[str, float]) -> bool:
    """Whether a rule that compares metrics with numbers does, by the values of a moment."""
    (expression,) = [rule["expr"] for rule in ALERTS["groups"][0]["rules"] if rule["alert"] == alert]
    compared = [clause.split() for clause in re.split(r" and (?:on \([^)]*\) )?", expression)]
    return all(now[name] < float(to) if sign == "<" else now[name] > float(to) for name, sign, to in compared)


@pytest.mark.parametrize(
    ("seconds_left", "filled", "does"), [(900, 0.01, False), (math.inf, 0.5, False), (900, 0.5, True)]
)
def test_a_log_is_said_to_fill_only_when_something_stays_in_it(seconds_left: float, filled: float, does: bool) -> None:
    """Much that comes and leaves again, as in a fast plant, is nothing to wake anybody for; nor is a log that takes in nothing."""
    now = {"tidemill_log_seconds_left": seconds_left, "tidemill_log_filled_ratio": filled}
    assert fires("TidemillLogFills", now) == does


def test_a_run_that_ends_itself_all_night_is_seen() -> None:
    """It is started again within seconds and is well until it ends itself next, so that no rule about a condition that lasts sees
    it; not even as seldom as the unit advises, for a source that connects anew first and has its time twice."""
    (rule,) = [rule for rule in ALERTS["groups"][0]["rules"] if rule["alert"] == "TidemillRestarts"]
    found = re.fullmatch(r"resets\(tidemill_run_seconds\[(\d+)h\]\) > (\d+)", rule["expr"])
    advised = re.search(r"--silent-after (\d+)", UNIT)
    assert found and advised  # noqa: PT018 - either is a part of the file
    lasts_s = 2 * int(advised[1]) + float(settings()["TimeoutStopSec"]) + float(settings()["RestartSec"])
    assert int(found[1]) * 3_600 // lasts_s > int(found[2])
    assert "for" not in rule


def test_what_is_told_of_an_alert_is_what_it_has(page: dict[str, set[str]]) -> None:
    """No label is named that its expression does not leave."""
    for rule in ALERTS["groups"][0]["rules"]:
        told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        names = re.findall(r"tidemill_\w+", rule["expr"])
        assert told - {"instance"} <= {label for name in names for label in page[name]}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "warn")


def test_the_panels_do_not_overlap() -> None:
    """Each has a place of its own, and a number."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
